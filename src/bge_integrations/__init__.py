"""BGE embeddings for LangChain and LlamaIndex."""
