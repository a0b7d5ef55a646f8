"""The rerank worker: `python -m services.rerank`."""

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

from services.rerank.settings import RerankSettings
from services.rerank.worker import rerank_worker
from services.worker.application import run_worker

if __name__ == "__main__":
    run_worker("rerank", RerankSettings, rerank_worker)
