"""bge-m3's three outputs from one pass, side by side with the dense vector alone and with the peers.

    python benchmarks/m3.py --passages 40 --layers 6      # some minutes on two cores

The model is made here: bge-m3's width with random weights and fewer layers (speed does not depend on the weights; of
fewer layers, the last one, which the outputs cost in full, is a larger part). Engines run in processes of their own and
are asked in turn. bge-m3-lite is not among them: it loads the published files alone, by their hashes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import local
import peers

ENVIRONMENTS = {"FlagEmbedding, all three": "flag"}
BASELINE = "ours, dense"


def main() -> None:
    """Print and write the seconds of each engine, as ratios to the dense vector alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=local.HERE / "results" / "m3.json")
    parsed = parser.parse_args()
    import models

    folder = models.m3(parsed.layers)
    texts = local.make_texts(parsed.passages, folder)["mixed"]
    engines = []
    for name in peers.M3:
        environment = ENVIRONMENTS.get(name)
        python = local.ROOT / ".venv-peers" / environment / "bin" / "python" if environment else Path(sys.executable)
        if not python.exists():
            print(f"{name}: left out, no {python.relative_to(local.ROOT)}; run `make bench-peers`", file=sys.stderr)
            continue
        engines.append(local.start(name, python, folder, local.HERE / "peers.py"))
    engines = [engine for engine in engines if not engine.failed]
    samples: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for turn in range(parsed.repeats + 1):
        for engine in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
            answer = engine.ask("mixed", texts)
            if turn and answer is not None:  # the first warms up
                samples[engine.name].append(answer["seconds"])
    for engine in engines:
        engine.close()
    typical = {name: statistics.median(taken) for name, taken in samples.items() if taken}
    report = {
        "machine": local.machine(),
        "passages": parsed.passages,
        "layers": parsed.layers,
        "tokens": sum(local.count_tokens(folder, texts)),
        "engines": {
            name: {"seconds": seconds, "samples": samples[name], "times_dense": seconds / typical[BASELINE]}
            for name, seconds in typical.items()
        },
    }
    parsed.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for name, row in report["engines"].items():
        print(f"{name:32} {row['seconds']:8.2f} s   {row['times_dense']:5.2f} x the time of {BASELINE!r}")


if __name__ == "__main__":
    main()
