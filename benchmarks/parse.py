"""The cost of parsing a DAG file: CPU of the imports, in addition to ``airflow.sdk``, which it imports in any case.

CPU seconds, because a parser's process is new for each file, and its files are in the page cache.
"""

from __future__ import annotations

import gc
import statistics
import time
from importlib import import_module

from benchmarks.measure import fresh
from benchmarks.results import Row

TARGET, SHARE = 50.0, 0.5  # milliseconds; of each peer
OURS = "airflow_provider_geminiimg"
NAMES = [
    "GeminiImageGenerateOperator",
    "GeminiImageEditOperator",
    "GeminiImageBatchOperator",
    "GeminiImageSubmitOperator",
    "GeminiImageCollectOperator",
    "GeminiImageReviewOperator",
    "GeminiImageJobSensor",
]
PEERS = {
    "openai provider": ("airflow.providers.openai.operators.openai", ["OpenAIEmbeddingOperator"]),
    "common-ai provider": ("airflow.providers.common.ai.operators.llm", ["LLMOperator"]),
}


def imported(module: str, names: list[str]) -> float:
    """Milliseconds of CPU for importing `names` of `module`, after what every DAG file takes of ``airflow.sdk``."""
    import_module("airflow.sdk").DAG  # noqa: B018 - its names are loaded on first use
    import_module("airflow.sdk").BaseOperator  # noqa: B018
    gc.collect()
    gc.freeze()  # as Airflow's processor does: another one's objects are not looked through on our account
    began = time.process_time()
    found = import_module(module)
    for name in names:
        getattr(found, name)
    return (time.process_time() - began) * 1000


def run(quick: bool) -> list[Row]:
    """Contestants take turns, so that a busy moment meets all of them."""
    contestants = {"": (OURS, NAMES), "one operator": (OURS, NAMES[:1]), **PEERS}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + (2 if quick else 5)):  # the first time modules are compiled, which is not measured
        for name, (module, names) in contestants.items():
            times[name].append(fresh(imported, module=module, names=names))
    took = {name: statistics.median(values[1:]) for name, values in times.items()}
    figure = "import of all operators"
    return [
        Row("parse", figure, "ms", took[""], target=TARGET),
        *(Row("parse", figure, "ms", took[""], peer, took[peer], target=SHARE) for peer in PEERS),
        Row("parse", "import of the generate operator alone", "ms", took["one operator"]),
    ]
