"""`python -m bench COMMAND [--json] …`: see `python -m bench --help` and the `--help` of each command."""

import argparse
import importlib
import sys

# Each is a module of this package with `add_arguments(parser)` and `run(arguments) -> exit status`. A command is
# imported only when it runs, so that `verify-models` needs only the dependencies of a worker.
COMMANDS = {
    "embed": "tokens per second, compared with the model card's recipe, sentence-transformers and infinity",
    "rerank": "pairs per second, compared with the model card's recipe and sentence-transformers",
    "engine": "latency of one short query in the engine",
    "sharing": "speed of a worker beside other work on the same cores",
    "exactness": "how far a number format on a device is from float32",
    "profile": "where the time of a full step and of a short query goes",
    "gateway": "request rate of a warm cache, compared with a bare gRPC echo server",
    "index": "recall, latency and memory of the index as a collection grows",
    "quality": "nDCG, MRR and recall of BM25, the first stage and reranking on a test set",
    "invariance": "of how many queries the best ten change with what is computed beside a text",
    "chaos": "goodput, failures and recovery under overload, faults, restarts and hostile callers",
    "autoscale": "a simulated day of traffic with the autoscalers of the manifests",
    "verify-models": "results of real models, compared with the numbers that their cards print",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compares Winnow with other software.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=help, description=help) for name, help in COMMANDS.items()}
    chosen = next((word for word in words if word in COMMANDS), None)
    if chosen is None:
        parser.parse_args(words)  # prints the help or the error, and exits
        return 2
    module = importlib.import_module(f"bench.{chosen.replace('-', '_')}")
    module.add_arguments(parsers[chosen])
    status: int = module.run(parser.parse_args(words))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
