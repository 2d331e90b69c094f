"""What every encoder and reranker speaks: the seam, outputs, checks, the tokenizer, the event loop, usage."""
