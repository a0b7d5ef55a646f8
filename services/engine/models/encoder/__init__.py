"""BERT, RoBERTa and XLM-RoBERTa: config, weights, forward pass and the head of cross-encoders."""
