"""bge-m3's sparse vectors in the shapes that LangChain's stores want; each module needs the store's own package."""
