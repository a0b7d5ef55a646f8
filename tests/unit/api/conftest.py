from tests.support.tiny import tiny

__all__ = ["tiny"]
