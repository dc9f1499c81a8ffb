"""docs/settings.md out of the dataclasses: every setting, its type, default and meaning.

python tests/docs/settings_table.py > docs/settings.md
"""

import dataclasses

from nanogpt import GPTConfig, TrainConfig
from nanogpt.config import Actions
from nanogpt.model import declared
from nanogpt.run.flags import field_help, short

HEAD = """# Settings

```bash
python recipes/shakespeare.py --help
```

Every field of `GPTConfig` and `TrainConfig` is a flag of each recipe: `--n_layer=8` or `--n_layer 8`. A recipe's values
override the defaults below, and the command line overrides the recipe's. `--help` shows a recipe's own values.
`--config out/x/config.json` repeats a run; flags after it change settings.
`eval "$(nanogpt --completion bash)"` adds tab completion for the `nanogpt` command.

This file is generated: `python tests/docs/settings_table.py > docs/settings.md`.
"""


def table(config: type) -> list[str]:
    """The lines of one dataclass's table."""
    help_of, kinds = field_help(config), declared(config)
    lines = [f"## {config.__name__}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(config):
        meaning = help_of[field.name].replace("|", "\\|")
        kind = short(*kinds[field.name]).lower().replace("|", ", ")
        lines.append(f"| `{field.name}` | {kind} | `{str(field.default).lower()}` | {meaning} |")
    return lines


def settings() -> str:
    """The whole page."""
    return "\n".join([HEAD, *table(GPTConfig), "", *table(TrainConfig), "", *table(Actions)]) + "\n"


if __name__ == "__main__":
    print(settings(), end="")
