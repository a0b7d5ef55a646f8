"""Which subjects there are, and how each is started: as it starts by itself, and told each other number format."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.machine import ROOT
from bench.report import Report
from bench.shapes import is_encoder
from bench.subjects import MissingError, Model, Subject
from bench.subjects.process import Process

EMBEDDERS = {
    "winnow": "bench.subjects.winnow:WinnowEmbedder",
    "recipe": "bench.subjects.recipe:RecipeEmbedder",
    "sentence-transformers": "bench.subjects.sentence_transformers:SentenceTransformersEmbedder",
    "infinity": "",  # a server
    "sentence-transformers-onnx": "bench.subjects.int8:OnnxEmbedder",
    "sentence-transformers-openvino": "bench.subjects.int8:OpenVinoEmbedder",
}
RERANKERS = {
    "winnow": "bench.subjects.winnow:WinnowReranker",
    "recipe": "bench.subjects.recipe:RecipeReranker",
    "sentence-transformers": "bench.subjects.sentence_transformers:SentenceTransformersReranker",
}
# int8 models, whose packages do not go together with ours: their environment, and what it needs besides
# sentence-transformers.
INT8 = {
    "sentence-transformers-onnx": (ROOT / ".cache" / "onnx", "'optimum-onnx[onnxruntime]'"),
    "sentence-transformers-openvino": (ROOT / ".cache" / "openvino", "optimum-intel openvino nncf"),
}
# The recipes of other cards.
_ENCODER_RECIPES = {
    "bench.subjects.recipe:RecipeEmbedder": "bench.subjects.encoder_recipe:EncoderEmbedder",
    "bench.subjects.recipe:RecipeReranker": "bench.subjects.encoder_recipe:EncoderReranker",
}
REFERENCE = ("recipe", "float32")
_ONE_BATCH = ("winnow", "recipe")  # take the whole list; the bench sets their batch size by the case


def fitting(loaders: dict[str, str], folder: Path) -> dict[str, str]:
    """Of EMBEDDERS or RERANKERS, those that can load the checkpoint, with the recipe of its card."""
    if not is_encoder(json.loads((folder / "config.json").read_text())):
        return loaders
    return {name: _ENCODER_RECIPES.get(loader, loader) for name, loader in loaders.items() if name not in INT8}


class Starter:
    """Starts subjects on one checkpoint and device; they end with `stack`.

    `loaders` is EMBEDDERS or RERANKERS, `formats` what each subject is told besides what it chooses itself.
    """

    def __init__(
        self, loaders: dict[str, str], folder: Path, device: str, formats: Sequence[str], batch_sizes: Sequence[int],
        batch_tokens: int, stack: ExitStack,
    ) -> None:  # fmt: skip
        self._loaders, self._folder, self._device, self._formats = loaders, folder, device, formats
        self._batch_sizes, self._batch_tokens, self._stack = batch_sizes, batch_tokens, stack

    def subjects(self, name: str) -> Iterator[Subject]:
        """The subject in its own format, then in each other one, at each batch size. Raises MissingError."""
        if name in INT8:
            yield from self._at_each_size(name, self._int8(name), default=False)
            return
        own = self._load(name, None)
        yield from self._at_each_size(name, own, default=True)
        for format in self._formats:
            if format != own.format and (format != "int8" or name == "winnow"):  # int8 of peers: see INT8
                yield from self._at_each_size(name, self._load(name, format), default=False)

    def reference(self, subjects: Sequence[Subject]) -> Model:
        """What every subject's numbers are compared with: transformers in float32."""
        running = (subject.model for subject in subjects if (subject.name, subject.format) == REFERENCE)
        return next(running, None) or self._load(*REFERENCE)

    def _at_each_size(self, name: str, model: Model, *, default: bool) -> Iterator[Subject]:
        for size in [0] if name in _ONE_BATCH else self._batch_sizes:
            yield Subject(name, model, size, default)

    def _load(self, name: str, format: str | None) -> Model:
        arguments = {"folder": self._folder, "device": self._device, "format": format}
        if name == "infinity":
            from bench.subjects.infinity import Infinity

            return self._held(Infinity(self._folder, self._device, format, self._batch_sizes))
        if name == "winnow":
            arguments["batch_tokens"] = self._batch_tokens
        return self._held(Process(self._loaders[name], arguments))

    def _int8(self, name: str) -> Model:
        environment, packages = INT8[name]
        python = environment / "bin" / "python"
        if self._device != "cpu":
            raise MissingError("computes on a CPU only")
        if not python.is_file():
            shown = environment.relative_to(ROOT)
            raise MissingError(
                f"not installed: python -m venv {shown} && {shown}/bin/pip install {packages} sentence-transformers"
            )
        return self._held(Process(self._loaders[name], {"folder": self._folder}, python))

    def _held(self, model: Model) -> Model:
        self._stack.callback(model.close)
        return model


@contextmanager
def started(
    loaders: dict[str, str], names: Sequence[str], folder: Path, device: str, formats: Sequence[str],
    batch_sizes: Sequence[int], batch_tokens: int, output: Report,
) -> Iterator[tuple[list[Subject], Callable[[], Model]]]:  # fmt: skip
    """All subjects of `names` in the order of `loaders`, and what starts the reference. Raises SubjectError.

    A subject that cannot be had is noted and left out.
    """
    with ExitStack() as stack:
        starter = Starter(loaders, folder, device, formats, batch_sizes, batch_tokens, stack)
        subjects: list[Subject] = []
        for name in names:
            if name not in loaders:
                output.note(f"without {name}: it is measured with Qwen3 only")
        for name in loaders:
            if name not in names:
                continue
            try:
                with output.console.status(f"starting {name}"):
                    subjects += starter.subjects(name)
            except MissingError as error:
                output.note(f"without {name}: {error}")
        yield subjects, lambda: starter.reference(subjects)
