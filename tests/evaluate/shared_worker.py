"""One of several processes that share a model: python -m torch.distributed.run ... -m tests.evaluate.shared_worker OUT

The first writes what came back: for each call who answered which request, or what was raised.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.shared import answer, sharing
from minitron_cli.hf.process_group import World, join


class Model:
    """Answers with its rank and the request; refuses the word "refused", and fails on the word "bad"."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _answer(self, requests: list[Instance]) -> list[Any]:
        if any("bad" in request.args for request in requests):
            raise ValueError("a bad request")
        if any("refused" in request.args for request in requests):
            raise MinitronError("a refused request", "ask for another")
        return [[self.world.rank, *request.args] for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until = _answer


def main(output: Path) -> None:
    with join("cpu") as world:
        model = Model(world)
        if not world.first:
            answer(model, world)
            return
        found: dict[str, Any] = {}
        with sharing(model, world):
            for name, count in (("loglikelihood", 8), ("generate_until", 2), ("loglikelihood_rolling", 0)):
                requests = [Instance(name, {}, (f"{name} {i}", {"until": [i]}), i) for i in range(count)]
                found[name] = getattr(model, name)(requests)
            for last in ("bad", "refused"):
                try:
                    model.loglikelihood([Instance("loglikelihood", {}, (word,), 0) for word in ("a", "b", last)])
                except (MinitronError, RuntimeError) as error:
                    found[last] = [type(error).__name__, str(error), getattr(error, "hint", "")]
        found["alone"] = model.loglikelihood([Instance("loglikelihood", {}, ("a",), 0)])
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
