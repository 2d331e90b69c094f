"""``bge demo``: the main job on real input, in both frameworks, local and remote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from ..core.encoder import Encoder, Vectors
from ..errors import ConfigError
from ..extras import require_all
from ..load import load_encoder, load_reranker
from .options import add_encoder_arguments, make_encoder, with_bar

if TYPE_CHECKING:
    from langchain_core.vectorstores import InMemoryVectorStore

_QUESTIONS = (
    "how long does a call wait?",
    "does the cache keep queries and documents apart?",
    "why is the similarity of unrelated texts so high?",
    "what is put in front of a query?",
)
_NEEDS = {
    "langchain": ("langchain_core", "langchain_text_splitters"),
    "llama-index": ("llama_index",),
    "server": ("fastapi", "uvicorn", "prometheus_client"),
}
_ENDINGS = (".md", ".txt", ".rst")
_CANDIDATES = 20  # chunks that the reranker scores for each question, or as many as are shown
_FEWEST_WORDS = 6  # a chunk of fewer is a heading alone, which answers nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge demo``."""
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="a folder of text (default: this package's documentation)"
    )
    parser.add_argument("--ask", action="append", metavar="QUESTION", help="question to ask (repeatable)")
    parser.add_argument(
        "--chunk", type=int, default=128, metavar="N", help="tokens per chunk, up to the model's limit (default: 128)"
    )
    parser.add_argument("-k", type=int, default=2, metavar="N", help="hits per question (default: 2)")
    parser.add_argument(
        "--reranker", metavar="MODEL", help="reranker to show (default: the demo's with the demo model)"
    )
    add_encoder_arguments(parser, model="demo")


def run(parsed: argparse.Namespace) -> int:
    """Index the folder in both frameworks, ask with and without the instruction, rerank, then the same over HTTP."""
    here = not (parsed.provider or parsed.base_url) and parsed.backend != "onnx"
    if parsed.k < 1 or parsed.chunk < 1:
        raise ConfigError("-k and --chunk must be at least 1")
    local = {"local": ("torch", "tokenizers")} if here or parsed.reranker else {}
    require_all({**_NEEDS, **local}, purpose="bge demo")
    encoder = with_bar(make_encoder(parsed, show_progress=False))
    files = _files_of(Path(parsed.folder)) if parsed.folder else _own_documentation()
    texts = _texts_of(files)
    chunks = _chunks(texts, encoder, parsed.chunk)
    questions = parsed.ask or (_questions_of(chunks) if parsed.folder else list(_QUESTIONS))
    counted = f"{_count(len(texts), 'file')}, {_count(len(chunks), 'chunk')}"
    print(f"{counted} of up to {parsed.chunk} tokens; the model is {encoder.card.id!r}")
    print(f"a query is sent as   {encoder.card.format('...', 'query', encoder.query_instruction)!r}")
    print("a document is sent as it is\n")
    store = _store(encoder, chunks)
    _ask_langchain(store, make_encoder(parsed, query_instruction=""), questions, parsed.k)
    if encoder.card.id == "demo":
        print("\n  (Real BGE models need the instruction far less: see the demo model's README.)")
    if reranker := parsed.reranker or ("demo" if here and encoder.card.id == "demo" else None):
        _rerank(reranker, store, questions, parsed.k, min(len(chunks), max(_CANDIDATES, parsed.k)))
    _ask_llama_index(encoder, chunks, questions, parsed.k)
    _compare_remote(parsed, encoder, chunks, questions)
    return 0


def _own_documentation() -> list[Path]:
    """Return the explanations that the wheel contains, or those of the repository that this runs from."""
    inside, root = Path(__file__).parent.parent / "demo" / "docs", Path(__file__).parents[3]
    return sorted(inside.rglob("*.md")) or sorted(root.glob("docs/explanation/*.md"))


def _questions_of(chunks: list[tuple[str, str]]) -> list[str]:
    """Return beginnings of a few chunks of somebody's own text, since nobody knows what to ask it."""
    spread = chunks[:: max(1, len(chunks) // 3)][:3]
    return [" ".join(text.lstrip("#*- ").split()[:8]) for _, text in spread]


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder")
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in _ENDINGS and path.is_file())
    files = [path for path in found if _visible(path, folder)]
    if not files:
        raise ConfigError(f"no text in {str(folder)!r}: it needs files that end in {', '.join(_ENDINGS)}")
    return files


def _visible(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part in ("node_modules", "site-packages") for part in parts)


def _texts_of(files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return name and text of each file; one that is not text, or cannot be read, is skipped with a line that says so.

    Raises:
        ConfigError: none is left.
    """
    from ..bulk.documents import plain_text

    texts = []
    for path in files:
        try:
            texts.append((path.name, plain_text(path.read_bytes())))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"bge: skipped {str(path)!r}: {reason}", file=sys.stderr)
    if not any(text.strip() for _, text in texts):
        raise ConfigError(f"no text in {_count(len(files), 'file')}: each is empty or was skipped")
    return texts


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _chunks(texts: Sequence[tuple[str, str]], encoder: Encoder, size: int) -> list[tuple[str, str]]:
    from ..langchain.embeddings import BGEEmbeddings

    splitter = BGEEmbeddings(encoder=encoder).splitter(chunk_size=size)
    chunks = [(name, chunk) for name, text in texts for chunk in splitter.split_text(text) if chunk.strip()]
    return [(name, chunk) for name, chunk in chunks if len(chunk.split()) >= _FEWEST_WORDS] or chunks


def _store(encoder: Encoder, chunks: list[tuple[str, str]]) -> InMemoryVectorStore:
    from langchain_core.vectorstores import InMemoryVectorStore

    from ..langchain.embeddings import BGEEmbeddings

    store = InMemoryVectorStore(BGEEmbeddings(encoder=encoder))
    store.add_texts([text for _, text in chunks], metadatas=[{"file": name} for name, _ in chunks])
    return store


def _ask_langchain(store: InMemoryVectorStore, plain: Encoder, questions: Sequence[str], k: int) -> None:
    from ..langchain.embeddings import BGEEmbeddings

    width = _width(2)
    print("LangChain, InMemoryVectorStore")
    print(f"    {'with the instruction':{width}} | without it")
    without = BGEEmbeddings(encoder=plain)
    for question in questions:
        right = store.similarity_search_with_score(question, k=k)
        vector = without.embed_query(question)
        wrong = store.similarity_search_with_score_by_vector(vector, k=k)
        print(f"\n  {question}")
        for (document, score), (other, other_score) in zip(right, wrong, strict=True):
            left = _hit(score, document.metadata["file"], document.page_content, width)
            print(f"    {left:{width}} | {_hit(other_score, other.metadata['file'], other.page_content, width)}")


def _rerank(model: str, store: InMemoryVectorStore, questions: Sequence[str], k: int, candidates: int) -> None:
    """Let a reranker order the chunks that are nearest to each question."""
    from ..langchain.reranker import BGEReranker

    nearest = store.as_retriever(search_kwargs={"k": candidates})
    with load_reranker(model) as reranker:
        retriever = BGEReranker(reranker=reranker, top_n=k).wrap(nearest)
        print(f"\nLangChain, BGEReranker({model!r}): the best of the {candidates} nearest chunks")
        for question in questions:
            print(f"\n  {question}")
            for document in retriever.invoke(question):
                score = document.metadata["relevance_score"]
                print(f"    {_hit(score, document.metadata['file'], document.page_content, _width(1))}")


def _width(hits: int) -> int:
    """Return the columns that one of so many hits in a line may take."""
    return max(30, min(68 * (3 - hits), (get_terminal_size((120, 24)).columns - 7) // hits))


def _hit(score: float, name: str, text: str, width: int) -> str:
    shown = f"{score:.3f} {name[:18]:18} {' '.join(text.split())}"
    return shown[:width]


def _ask_llama_index(encoder: Encoder, chunks: list[tuple[str, str]], questions: Sequence[str], k: int) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from ..llama_index.embeddings import BGEEmbedding

    nodes = [TextNode(text=text, metadata={"file": name}) for name, text in chunks]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["file"]
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(encoder=encoder))
    print("\nLlamaIndex, VectorStoreIndex")
    retriever = index.as_retriever(similarity_top_k=k)
    for question in questions:
        print(f"\n  {question}")
        for hit in retriever.retrieve(question):
            print(f"    {_hit(hit.score or 0.0, hit.node.metadata['file'], hit.node.get_content(), _width(1))}")


def _compare_remote(
    parsed: argparse.Namespace, encoder: Encoder, chunks: list[tuple[str, str]], questions: Sequence[str]
) -> None:
    texts = [text for _, text in chunks]
    from .. import server

    with server.background(encoder.engine) as url:
        print(f"\nThe same over HTTP, from this package's own endpoint at {url}")
        for name, provider, base_url in (("OpenAI-compatible", None, f"{url}/v1"), ("Space", "space", url)):
            remote = load_encoder(
                parsed.model,
                provider=provider,
                base_url=base_url,
                wire_model=encoder.card.id,
                query_instruction=parsed.query_instruction,
                show_progress=False,
            )
            remote = with_bar(remote)
            documents = _difference(encoder.encode(texts, role="document"), remote.encode(texts, role="document"))
            queries = _difference(encoder.encode(questions, role="query"), remote.encode(questions, role="query"))
            same = "the same space" if remote.space == encoder.space else f"ANOTHER SPACE {remote.space}"
            print(f"  {name:18} largest difference: documents {documents:.1e}, queries {queries:.1e}; {same}")
            remote.close()


def _difference(a: Vectors, b: Vectors) -> float:
    return float(abs(a - b).max())
