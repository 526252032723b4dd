"""Stable-diffusion.cpp alone, in one process: what the services are compared with.

Loads the model that is named in argv, then reads one JSON job a line from stdin and answers each with the seconds
that `SDContext.generate` took. With `--once JOB` it computes one job and ends.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serve jobs until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from cyllama import sd

    params = sd.SDContextParams(model_path=sys.argv[1], n_threads=int(sys.argv[2]))
    params.eager_load = True
    context = sd.SDContext(params)

    def draw(job: dict[str, Any]) -> float:
        began = time.perf_counter()
        context.generate(sample_method=sd.SampleMethod.EULER_A, **job)
        return time.perf_counter() - began

    if sys.argv[3:4] == ["--once"]:
        draw(json.loads(sys.argv[4]))
        return
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(draw(json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
