"""A run in this process, of which a test may replace functions of the loop: `run.step = …`, `run.micro_batch = …`."""

from contextlib import ExitStack
from unittest.mock import patch

from nanogpt import train
from nanogpt.run import guard, plan
from nanogpt.run.main import train_to_the_end
from nanogpt.run.prepare import prepare

LOOP = {name: getattr(train, name) for name in ("step", "micro_batch", "log", "evaluate_and_save", "save")}


class Run:
    """What `prepare` makes, with the functions of `nanogpt.train` as methods; its other attributes are those of Parts.

    A method that is replaced on the object takes the function's place in the loop, without config, parts and state.
    """

    def __init__(self, *args, **options):
        self.config, self.parts, self.state = prepare(*args, **options)
        self.start_step = self.state.step

    def __getattr__(self, name):
        if name in LOOP:
            return lambda *args: self.call(LOOP[name], *args)
        return getattr(self.parts, name)

    def call(self, function, *args):
        """The function's result, with this run's config, parts and state before its other arguments."""

        def stand_in(name):
            def call(config, parts, state, *args):
                self.config = config
                return vars(self)[name](*args)

            return call

        with ExitStack() as stack:
            for name in LOOP.keys() & vars(self).keys():
                stack.enter_context(patch.object(train, name, stand_in(name)))
            return function(self.config, self.parts, self.state, *args)

    def train(self) -> None:
        self.call(train_to_the_end)

    def rehearse(self) -> None:
        self.config = self.call(guard.rehearse)

    def plan(self, as_json: bool = False) -> None:
        self.call(plan.show, as_json)

    def measure(self) -> float:
        return self.call(plan.seconds_per_step)
