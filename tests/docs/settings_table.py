"""docs/settings.md out of the dataclasses: every setting, its type, default and meaning.

python tests/docs/settings_table.py > docs/settings.md
"""

import dataclasses

from nanogpt import GPTConfig, TrainConfig
from nanogpt.model import declared
from nanogpt.run.flags import Actions, field_help, short

HEAD = """# Settings

```bash
python recipes/shakespeare.py --help
```

Every field of `GPTConfig` and `TrainConfig` is a flag of each recipe but `minimal.py` and `grpo.py`: `--n_layer=8` or
`--n_layer 8`. A recipe's values override the defaults below, and the command line overrides the recipe's. `--help`
shows a recipe's own values. `--config out/x/config.json` repeats a run; other flags override its settings.

This file is generated: `python tests/docs/settings_table.py > docs/settings.md`.
"""


def settings() -> str:
    """The whole page."""
    lines = [HEAD]
    for config in (GPTConfig, TrainConfig, Actions):
        lines += [f"## {config.__name__}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(config):
            meaning = field_help(config)[field.name].replace("|", "\\|")
            kind = short(*declared(config)[field.name]).lower().replace("|", ", ")
            lines.append(f"| `{field.name}` | {kind} | `{str(field.default).lower()}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(settings(), end="")
