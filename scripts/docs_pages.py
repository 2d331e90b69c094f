"""The documentation's pages that are made, not written: from the catalogue, the command line, the benchmarks' results
and the repository's own Markdown. MkDocs calls the hooks at the end; the rest returns text.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_integrations import MODELS, PROVIDERS, Provider, errors
from bge_integrations.catalog import who_serves
from bge_integrations.catalog.golden import read_golden
from bge_integrations.catalog.records import ModelCard, Offer
from bge_integrations.options import OPTIONS, RERANKER_OPTIONS
from bge_integrations.remote.protocols import OUTPUT_PROTOCOLS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_WIDTH = 84  # columns of code that fit on a page

BENCHMARKS = (
    ("local", "Local models", "The local back-ends and other libraries, side by side in one run."),
    ("start", "Start", "From `python` to the first vector, each engine in a new process, in turn in one run."),
    ("precision", "What a precision costs", "Vectors of trained weights in each precision, compared with float32."),
    (
        "rerank",
        "Local rerankers",
        "Speed relative to sentence-transformers' CrossEncoder, called in turn in one run.",
    ),
    (
        "m3",
        "bge-m3's three outputs",
        "The time for all three outputs in one pass, compared with the dense vector alone and with other libraries.",
    ),
    (
        "remote",
        "Remote models",
        "Texts per second against a local stub that answers at once, compared with other clients.",
    ),
    ("server", "The server", "The cost of HTTP, with one request in ten malformed, too large or cut off."),
    ("bulk", "Bulk embedding", "Rows per second into shards, memory, and Ray."),
    ("update", "Updates of shards", "Reading, comparing and writing alone, with synthetic vectors; peak memory."),
    (
        "upload",
        "Uploads into vector stores",
        "The time of LangChain's `add_texts` with the same stored vectors, in multiples of `bge upload`'s own way.",
    ),
    (
        "dups",
        "Near-duplicates",
        "Time and memory, exact and approximate, compared with the product of all vectors in memory.",
    ),
    (
        "quantise",
        "Smaller vectors",
        "Size and recall of the ten nearest neighbours with int8 and binary vectors; also under random rotations.",
    ),
    (
        "soak",
        "A long job on an unreliable host",
        "A host that fails in every way that the tests know, and a job that is killed repeatedly.",
    ),
)

_LINKS = {
    "docs/": "",
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "notebooks/README.md": "notebooks.md",
    "deploy/space/": "how-to/serve.md",
    "benchmarks/results/local.svg": "img/local.svg",
    "benchmarks/results": "benchmarks.md",
}


def pages() -> dict[str, str]:
    """Return every made page by its path under docs/."""
    return {
        "index.md": "---\nhide: [navigation]\n---\n" + _from_root("README.md"),
        "explanation/architecture.md": _from_root("ARCHITECTURE.md", "../"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
        "releasing.md": _from_root("RELEASING.md"),
        "security.md": _from_root("SECURITY.md"),
        "changelog.md": "---\nsearch: { exclude: true }\n---\n" + _from_root("CHANGELOG.md"),
        "notebooks.md": _notebooks_page(),
        **{f"notebooks/{path.stem}.md": notebook_page(path) for path in NOTEBOOKS},
        "providers/index.md": providers_page(PROVIDERS),
        **{provider_path(provider): provider_page(provider) for provider in PROVIDERS},
        "reference/models.md": models_page(),
        "reference/options.md": options_page(),
        "reference/errors.md": errors_page(),
        "reference/cli.md": cli_page(),
        "benchmarks.md": benchmarks_page(RESULTS),
    }


def _from_root(name: str, up: str = "") -> str:
    text = (ROOT / name).read_text("utf-8")
    text = re.sub(r"<!-- badges -->.*?<!-- /badges -->\n", "", text, flags=re.DOTALL)  # images of other sites
    text = re.sub(r"<picture>.*?</picture>", _both_schemes, text, flags=re.DOTALL)
    for there, here in _LINKS.items():
        text = re.sub(rf"\]\({re.escape(there)}", f"]({up}{here}", text)
    return text


def _both_schemes(picture: re.Match[str]) -> str:
    """Return a picture with a dark variant as the theme wants it: the reader's toggle decides, not the system alone."""
    dark, light, words = re.findall(r'(?:srcset|src|alt)="([^"]+)"', picture[0])
    return f"![{words}]({light}#only-light)\n![{words}]({dark}#only-dark)"


def _notebooks_page() -> str:
    text = re.sub(r"\((\d\w+)\.ipynb\)", r"(notebooks/\1.md)", _from_root("notebooks/README.md"))
    return re.sub(r"\[([^]]+)\]\(\w+\.py\)", r"`\1`", text)


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its cells, and the outputs that it keeps."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell_parts(cell)) + "\n"


def _cell_parts(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        source = re.sub(r"<a [^>]*><img [^>]*colab-badge[^>]*></a>\n*", "", source)  # an image of another site
        text = re.sub(r"\]\((\d\w+)\.ipynb\)", r"](\1.md)", source).replace("](../docs/", "](../")
        yield re.sub(r"\[([^]]+)\]\((?!https?:|#)[^)]*\.(?:py|md)\)", _where_the_site_has_it, text)
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).strip()
            yield f'<img class="plot" alt="what the cell draws" src="data:image/png;base64,{picture}">'
        elif "application/vnd.plotly.v1+json" not in data:  # too large, and wants a script
            yield f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```"


def _where_the_site_has_it(found: re.Match[str]) -> str:
    outside = "src/" in found[0] or found[0].endswith(".py)")
    return f"`{found[1].strip('`')}`" if outside else found[0]


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


# --- providers


def provider_path(provider: Provider) -> str:
    """Return where a provider's page lies."""
    return f"providers/{provider.name.replace('.', '-')}.md"


def _title(provider: Provider) -> str:
    return provider.title if provider.title not in ("", provider.name) else provider.name


def _heading(provider: Provider) -> str:
    """Return the title with the name that users type, which is what they search for."""
    title = _title(provider)
    return title if title.lower() == provider.name.lower() else f"{title} ({provider.name})"


def providers_page(providers: Sequence[Provider]) -> str:
    """Return the page that lists all providers and servers."""
    hosted = [p for p in providers if p.needs_key and not p.refused]
    run = [p for p in providers if not p.needs_key]
    none = [p for p in providers if p.refused]
    dates = ", ".join(sorted({provider.checked for provider in providers}))
    return "\n".join(
        [
            "# Providers and servers\n",
            "This page is generated from the catalogue, which was compiled from the providers' own pages in "
            f"{dates}; each page below names its source. An empty cell means that the provider does not say. Prices "
            "and limits change: check them there before you rely on them. A provider is one record; "
            "[Contributing](../contributing.md) shows how to add one.\n",
            "## Providers\n",
            table(list(map(_row, hosted)), ("provider", "models", "texts per request", "USD per million tokens")),
            "## Servers that you run\n",
            table([_row(p)[:3] for p in run], ("server", "models", "texts per request")),
            "## No BGE models\n",
            *[f"- [{_title(p)}]({Path(provider_path(p)).name}): {p.refused}" for p in none],
        ]
    )


def _row(provider: Provider) -> tuple[object, ...]:
    offers = [offer for offer in provider.offers if not offer.withdrawn]
    names = ", ".join(f"`{_short(offer.model)}`" for offer in offers) or (
        "all withdrawn" if provider.offers else "whatever you start it with"
    )
    prices = sorted({offer.usd_per_million_tokens for offer in offers if offer.usd_per_million_tokens is not None})
    price = " to ".join(f"{price:g}" for price in dict.fromkeys(prices[:1] + prices[-1:]))
    link = f"[{_title(provider)}]({Path(provider_path(provider)).name})"
    names += f" (**{provider.pooling} pooling**)" if provider.pooling else ""
    return link, names, provider.max_inputs or "", price


def _short(model: str) -> str:
    return model.partition("/")[2] or model


def provider_page(provider: Provider) -> str:
    """Return the page of one provider or server."""
    parts = [f"# {_heading(provider)}\n"]
    if provider.refused:
        parts.append(f'!!! failure "No BGE model"\n    {provider.refused}.\n')
    elif provider.offers and all(offer.withdrawn for offer in provider.offers):
        parts.append('!!! failure "Withdrawn"\n    All BGE models of this provider have been withdrawn.\n')
    if provider.pooling:
        parts.append(_pooling_note(provider))
    parts.append(table(_facts(provider), ("", "")))
    if provider.offers:
        parts += ["## Models\n", _offers(provider)]
    if not provider.refused:
        parts += ["## Use it\n", _construct(provider)]
    if provider.quirks:
        parts += ["## What to know\n", *[f"- {quirk}" for quirk in _sentences(provider.quirks)], ""]
    parts.append(f"Source: {_source(provider)}.\n")
    return "\n".join(parts)


def _source(record: Provider | ModelCard) -> str:
    return record.source if record.checked in record.source else f"{record.source}, {record.checked}"


def _pooling_note(provider: Provider) -> str:
    return (
        f'!!! warning "Another vector space"\n    This provider uses {provider.pooling} pooling: its vectors have the '
        "right dimensions and length, but lie in another vector space. It is refused unless you pass "
        f"`accept_space={provider.pooling!r}`, "
        "which gives its vectors a [space](../explanation/spaces.md) of their own.\n"
    )


def _facts(provider: Provider) -> Iterator[tuple[str, str]]:
    yield "name", f"`provider={provider.name!r}`"
    address = f"`{provider.base_url}`" if provider.base_url else "pass `base_url=`"
    for hole, variable in provider.url_env:
        address += f"; `{{{hole}}}` is read from `{variable}`"
    if provider.base_url_env:
        address += f"; or the value of `{provider.base_url_env}`"
    yield "address", address
    keys = " or ".join(f"`{name}`" for name in provider.key_env)
    needed = "needed" if provider.needs_key else "not needed"
    yield "key", f"{needed}; read from {keys or '`BGE_API_KEY`'}, or `api_key=`"
    yield "protocol", "`POST /embed`" if provider.protocol == "space" else "OpenAI-compatible, `POST /embeddings`"
    if provider.output_dialect:
        outputs = ", ".join(OUTPUT_PROTOCOLS[provider.output_dialect].outputs)
        yield "outputs of bge-m3", f"{outputs} ([how](../how-to/hosts.md#bge-m3-at-a-host))"
    yield "texts per request", str(provider.max_inputs or "not stated; 64 are sent unless `max_inputs=` is set")
    yield "base64 responses", {True: "yes", False: "no", None: "not stated; used if it works"}[provider.base64]


def _offers(provider: Provider) -> str:
    rows = [(f"`{o.model}`", f"`{o.wire}`", _price(o), _terms(o)) for o in provider.offers]
    return table(rows, ("model", "sent as", "USD per million tokens", ""))


def _price(offer: Offer) -> str:
    return "not stated" if offer.usd_per_million_tokens is None else f"{offer.usd_per_million_tokens:g}"


def _terms(offer: Offer) -> str:
    said = [f"**withdrawn {offer.withdrawn}**"] if offer.withdrawn else []
    said += [offer.note] if offer.note else []
    said += [f"also {', '.join(f'`{name}`' for name in offer.aliases)}"] if offer.aliases else []
    return "; ".join(said)


def _construct(provider: Provider) -> str:
    live = next((offer for offer in provider.offers if not offer.withdrawn), None)
    model = _short((live or provider.offers[0]).model) if provider.offers else "bge-small-en-v1.5"
    arguments = [f'"{model}"', f'provider="{provider.name}"']
    if provider.base_url is None:
        arguments.append(f'base_url="{_example_address(provider)}"')
    if provider.pooling:
        arguments.append(f'accept_space="{provider.pooling}"')
    call = f"({', '.join(arguments)})"
    raises = "" if live or not provider.offers else "<!-- raises: NotServedError -->\n"
    return (
        f"{raises}```python\n"
        "from bge_integrations import load_encoder\n"
        "from bge_integrations.langchain import BGEEmbeddings\n"
        "from bge_integrations.llama_index import BGEEmbedding\n\n"
        f"load_encoder{call}  # plain Python\nBGEEmbeddings{call}  # LangChain\nBGEEmbedding{call}  # LlamaIndex\n```\n"
        + (_refusal(provider) if raises else "")
    )


def _refusal(provider: Provider) -> str:
    served = "; ".join(f"{_short(o.model)}: {', '.join(who_serves(o.model)) or 'nobody'}" for o in provider.offers)
    return f"\nEach line raises `NotServedError` which lists who serves the model now ({served}).\n"


def _example_address(provider: Provider) -> str:
    if provider.protocol == "space":
        return "https://USER-bge-embedding-api.hf.space"
    return {"infinity": "http://localhost:7997"}.get(provider.name, "http://localhost:8080/v1")


def _sentences(text: str) -> list[str]:
    return [html.escape(part, quote=False) for part in re.split(r"(?<=\.) (?=\S)", text) if part]


# --- models and the command line


def models_page() -> str:
    """Return the page of all models: their facts, what is sent, who serves them."""
    golden = read_golden()
    facts = [
        (f"`{c.id}`", c.dimensions, c.max_tokens, c.pooling, ", ".join(c.languages), _millions(c), c.licence or "?")
        for c in MODELS
    ]
    ways = dict.fromkeys((_query(c), c.instruction_needed) for c in MODELS)
    sent = [(_named(way), *way) for way in ways]
    names = [(f"`{c.id}`", _revision(c), _serving(c), _aliases(c), len(golden.of(c)) or "none") for c in MODELS]
    return "\n".join(
        [
            "# Models\n",
            "Generated from the catalogue; `bge models` prints it, `bge models NAME` prints one model in full.\n",
            table(facts, ("model", "dimensions", "tokens", "pooling", "languages", "million parameters", "licence")),
            "## What is sent\n",
            "Documents are sent unchanged. Queries are sent as follows; `⏎` is a newline.\n",
            table(sent, ("models", "a query", "its authors call the instruction")),
            "## Names, revisions, providers\n",
            "The part after `BAAI/` works as a name too, and so does any name that a provider in the catalogue uses.\n",
            table(names, ("model", "revision", "served by", "other names", "published vectors")),
            *[f"- `{card.id}`: {card.note}." for card in MODELS if card.note],
            "",
            *dict.fromkeys(f"Source: {_source(card)}.\n" for card in MODELS if card.id != "demo"),
        ]
    )


def _named(way: tuple[str, str]) -> str:
    return ", ".join(f"`{_short(card.id)}`" for card in MODELS if (_query(card), card.instruction_needed) == way)


def _query(card: ModelCard) -> str:
    if card.query_instruction is None:
        return f"`{_line(card.format('TEXT', 'query', 'TASK'))}`; no default task: pass one"
    return f"`{_line(card.format('TEXT', 'query'))}`"


def _line(text: str) -> str:
    return text.replace("\n", "⏎")


def _millions(card: ModelCard) -> str:
    return "" if card.parameters_millions is None else f"{card.parameters_millions:g}"


def _revision(card: ModelCard) -> str:
    return f"`{card.revision[:8]}`" if card.revision else "not pinned"


def _serving(card: ModelCard) -> str:
    known = {provider.name: provider for provider in PROVIDERS}
    return ", ".join(f"[{name}](../{provider_path(known[name])})" for name in who_serves(card.id))


def _aliases(card: ModelCard) -> str:
    return ", ".join(f"`{name}`" for name in card.aliases)


def cli_page() -> str:
    """Return the page of the command line: what ``--help`` prints."""
    overview = _help()
    parts = [
        "# Command line\n",
        "Exit codes: 0 success, 1 a finding (`bge verify`), 2 wrong usage or an error.\n",
        f"```text\n{overview}```\n",
    ]
    commands = re.findall(r"^ {4}(\w+) ", overview, re.MULTILINE)
    helps = {name: _help(name) for name in commands}
    shared = helps["embed"].partition(_ENCODER)[2]
    parts += [f"## bge {name}\n\n```text\n{_own_part(text, shared)}```\n" for name, text in helps.items()]
    parts += ["## Options of the encoder\n", f"For every command that embeds.\n\n```text\n{shared.lstrip()}```\n"]
    return "\n".join(parts)


def options_page() -> str:
    """Return the page of the keywords that load_encoder, load_reranker, the adapters and the command line take."""
    rows, pairs = (
        [(f"`{name}`", option.wanted, option.help) for name, option in options.items()]
        for options in (OPTIONS, RERANKER_OPTIONS)
    )
    saved = ", ".join(f"`{name}`" for name, option in OPTIONS.items() if option.decides == "vectors")
    return (
        "# Options\n\nThese are the keywords of `load_encoder`, `BGEEmbeddings` and `BGEEmbedding` and, written with "
        "dashes, the options of the command line. `None` stands for the default.\n\n"
        f"{table(rows, ('option', 'value', 'meaning'))}\n\n"
        f"`to_dict` of the LlamaIndex adapter contains those that determine the vectors or their origin: {saved}.\n\n"
        "## Rerankers\n\nThese are the keywords of `load_reranker` and of both `BGEReranker`.\n\n"
        f"{table(pairs, ('option', 'value', 'meaning'))}\n"
    )


_ENCODER = "\nthe encoder:\n"


def _own_part(text: str, shared: str) -> str:
    """Return a command's help without the options that all encoders have."""
    own, found, _ = text.partition(_ENCODER)
    if not found:
        return text
    usage, _, rest = own.partition("\n\n")
    for flag in re.findall(r"^ {2}(--[\w-]+)", shared, re.MULTILINE):
        usage = re.sub(rf"\s*\[{flag}\b(?!-)[^]]*\]", "", usage)
    usage = textwrap.fill(
        " ".join(usage.split()) + " ENCODER", _WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False
    )
    return f"{usage}\n\n{rest}\nENCODER: the options of the encoder, below\n"


def errors_page() -> str:
    """Return the page of errors: the tree that their module draws, then each class."""
    tree = (errors.__doc__ or "").partition("\n\n")[2]
    return (
        "# Errors\n\nEvery error is a `BGEError`; the built-in exceptions that catch it too are in brackets. "
        f"All errors can be pickled, and none contains an API key or a whole text.\n\n```text\n{tree}```\n\n"
        "::: bge_integrations.errors\n"
        "    options: {show_root_heading: false, show_root_toc_entry: false, show_docstring_description: true,\n"
        "      filters: ['!^_', '!^(no_thread|shorten|warn)$']}\n"  # for this package's own modules
    )


def _help(*arguments: str) -> str:
    from bge_integrations.cli import main

    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_WIDTH)
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return printed.getvalue()


# --- benchmarks


def benchmarks_page(results: Path) -> str:
    """Return the page of measurements: what the files in ``results`` hold, and what is not measured."""
    parts = [
        "# Benchmarks\n",
        "Every figure on this page was measured by a script in `benchmarks/`. Libraries run side by side in one run on "
        "one machine: compare them with each other, not with figures from another machine. Each script's docstring "
        "explains how it measures.\n",
    ]
    for name, title, about in BENCHMARKS:
        parts.append(f"## {title}\n\n{about}\n")
        files = [*results.glob(f"{name}.json"), *sorted(results.glob(f"{name}-*.json"))]
        for file in files:
            if file.stem != name:  # local-AVX2.json: the same on another kind of processor
                parts.append(f"### {file.stem.removeprefix(name + '-')}\n")
            if file.with_suffix(".svg").exists():
                parts.append(f"![{title}: {about}](img/{file.stem}.svg)\n")
            parts += _measured(json.loads(file.read_text("utf-8")), 3 + (file.stem != name))
            parts.append(f"From `benchmarks/results/{file.name}`, written by `python benchmarks/{name}.py`.\n")
        if not files:
            parts.append(f"**Not measured yet.** `python benchmarks/{name}.py` measures it.\n")
    return "\n".join(parts)


def _measured(data: Any, level: int) -> list[str]:
    """Return tables of whatever JSON a benchmark wrote: plain values first, then each group under its name."""
    if not isinstance(data, Mapping):
        return _series(data, level)
    plain = {name: value for name, value in data.items() if not _nested(value)}
    parts = _plain(plain)
    for name, value in data.items():
        if _is_line(name, value):
            parts.append(f"{_title_of(name)}: {_line_of(value)}.\n")
        elif _nested(value):
            parts.append(f"{'#' * min(level, 5)} {_title_of(name)}\n")
            parts += _compared(value, level + 1) if _are_alike(value) else _measured(value, level + 1)
    return parts


_SETTINGS = ("machine", "versions", "settings", "engine")
_FEW = 4


def _plain(values: Mapping[str, Any]) -> list[str]:
    if len(values) <= _FEW:
        return [f"{_title_of(_line_of(values))}.\n"] if values else []
    return [table([(_words(name), _figure(value)) for name, value in values.items()], ("", ""))]


def _line_of(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{_words(name)} {_figure(value)}" for name, value in values.items())


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(item, Mapping) for item in value))


def _is_line(name: str, value: Any) -> bool:
    if not isinstance(value, Mapping) or any(map(_nested, value.values())):
        return False
    return name in _SETTINGS or len(value) <= _FEW


def _are_alike(value: Any) -> bool:
    """Tell whether these are rows of one table: several groups that have a name in common."""
    inner = list(value.values()) if isinstance(value, Mapping) else []
    return (
        len(inner) > 1 and all(isinstance(i, Mapping) and i for i in inner) and bool(set.intersection(*map(set, inner)))
    )


def _compared(value: Mapping[str, Mapping[str, Any]], level: int) -> list[str]:
    """Return a table with a row for each library, and one more for each group of values that they have."""
    plain = {name: {n: v for n, v in row.items() if not _nested(v)} for name, row in value.items()}
    parts = [_grid(plain)] if any(plain.values()) else []
    groups = dict.fromkeys(n for row in value.values() for n, v in row.items() if isinstance(v, Mapping))
    for group in groups:
        found = {name: row[group] for name, row in value.items() if group in row}
        parts += [f"{'#' * min(level, 5)} {_title_of(group)}\n", _grid(found)]
    return parts


def _grid(value: Mapping[str, Mapping[str, Any]]) -> str:
    columns = dict.fromkeys(n for row in value.values() for n, v in row.items() if not isinstance(v, (list, Mapping)))
    rows = [(_words(name), *(_figure(row.get(column)) for column in columns)) for name, row in value.items()]
    return table(rows, ("", *map(_words, columns)))


def _series(items: Sequence[Mapping[str, Any]], level: int) -> list[str]:
    """Return a table of runs: one row each, or, for what each has many of, one column each."""
    plain = [{name: value for name, value in item.items() if not _nested(value)} for item in items]
    groups = list(dict.fromkeys(name for item in items for name, value in item.items() if _nested(value)))
    if not groups:
        columns = list(dict.fromkeys(name for row in plain for name in row))
        return [table([[_figure(row.get(column)) for column in columns] for row in plain], list(map(_words, columns)))]
    heads = [", ".join(f"{_words(name)} {_figure(value)}" for name, value in row.items()) for row in plain]
    parts = []
    for group in groups:
        found = [item.get(group, {}) for item in items]
        names = list(dict.fromkeys(name for values in found for name in values))
        rows = [(_words(name), *(_figure(values.get(name)) for values in found)) for name in names]
        parts += [f"{'#' * min(level, 5)} {_title_of(group)}\n", table(rows, ("", *heads))]
    return parts


def _title_of(name: str) -> str:
    return f"{_words(name)[0].upper()}{_words(name)[1:]}"


_NAMES = {
    "imports_seconds": "import time (s)",
    "floor_seconds": "time of the matrix products alone (s)",
    "mixed": "passages of mixed length",
    "slab": "passages of five lengths",
    "short": "short texts",
    "query": "one query",
    "concurrent": "64 queries at once",
    "calm": "undisturbed",
    "of_the_matrix_rate": "share of the matrix rate",
    "ours": "this package",
    "plain": "plain FastAPI app",
}
"""What a reader is shown for the names in ``benchmarks/results``."""


def _words(name: object) -> str:
    words = _NAMES.get(str(name), str(name))
    return re.sub(r"^ours\b", "this package", words).replace("_", " ")


def _figure(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return str(value)


# --- MkDocs


def on_config(config: Any) -> Any:
    """Put the providers and the notebooks into the navigation, and the site's address where it is known."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config["site_url"] = project.get("urls", {}).get("Documentation", "")  # 404.html needs it below a path
    for entry in config["nav"]:
        if "Project" in entry:
            entry["Project"][0] = {"Notebooks": ["notebooks.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)]}
        if "Providers" in entry:
            entry["Providers"] = ["providers/index.md", *({_title(p): provider_path(p)} for p in PROVIDERS)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the made pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for drawn in RESULTS.glob("*.svg"):
        files.append(File.generated(config, f"img/{drawn.name}", abs_src_path=str(drawn)))
    return files
