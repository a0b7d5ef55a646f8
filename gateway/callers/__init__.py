"""What each caller may do, and how much of it: policies, authorisation, quotas."""
