"""A run in this process, of which a test may replace functions of the loop: `run.step = …`, `run.micro_batch = …`."""

from contextlib import contextmanager

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
        return getattr(self.parts, name)

    @contextmanager
    def replaced(self):
        def instead(name):
            def call(config, parts, state, *args, **options):
                self.config = config
                return vars(self)[name](*args, **options)

            return call

        before = {name: getattr(train, name) for name in LOOP}
        try:
            for name in LOOP.keys() & vars(self).keys():
                setattr(train, name, instead(name))
            yield
        finally:
            for name, function in before.items():
                setattr(train, name, function)

    def call(self, function, *args, **options):
        with self.replaced():
            return function(self.config, self.parts, self.state, *args, **options)

    def train(self, profile: int = 0) -> None:
        self.call(train_to_the_end, profile)

    def step(self) -> None:
        self.call(LOOP["step"])

    def micro_batch(self, index: int, whole: bool = False):
        return self.call(LOOP["micro_batch"], index, whole)

    def log(self) -> None:
        self.call(LOOP["log"])

    def evaluate_and_save(self) -> None:
        self.call(LOOP["evaluate_and_save"])

    def save(self) -> None:
        self.call(LOOP["save"])

    def rehearse(self) -> None:
        self.config = self.call(guard.rehearse)

    def plan(self, actions) -> None:
        self.call(plan.show, actions)

    def measure(self) -> float:
        return self.call(plan.seconds_per_step)
