"""The embed worker: `python -m services.embed`."""

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

from services.embed.settings import EmbedSettings
from services.embed.worker import embed_worker
from services.worker.application import run_worker

if __name__ == "__main__":
    run_worker("embed", EmbedSettings, embed_worker)
