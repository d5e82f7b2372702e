"""Child: one target in a process of its own, so that a crash below Python is seen and named."""

import multiprocessing
import time
from typing import Any

from tqdm import tqdm

from tests.fuzz.campaign import fuzz
from tests.fuzz.twins import fuzz_twins

TWINS = "twins"


def run_in_a_process(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """What ``Outcome.to_json`` says, and how the process ended if it did not end well."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(name, inputs, seed, sender))
    started = time.time()
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = {"target": name, "inputs": 0, "accepted": 0, "refused": {}, "grown": 0, "slowest": 0.0, "defects": {}}
    process.join()
    if process.exitcode:
        result["defects"][f"the process ended with {process.exitcode}"] = {"count": 1}
    return {**result, "seed": seed, "started": int(started), "seconds": time.time() - started}


def _run(name: str, inputs: int, seed: int, sender: Any) -> None:
    with tqdm(total=inputs, desc=name, unit="input", disable=None) as bar:
        outcome = fuzz_twins(inputs, seed, bar.update) if name == TWINS else fuzz(name, inputs, seed, bar.update)
    sender.send(outcome.to_json())
