"""`nanogpt playground`: write with models side by side, and look inside them.

    pip install -e '.[playground]' -c constraints.txt
    nanogpt playground out/shakespeare out/wide

A local Gradio page that loads nothing from the network. The second tab shows how the models read a
text: a token's color is its loss, and below is what each head attends to and what each layer would
predict.
"""

import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from nanogpt.extras.inside import lens, look
from nanogpt.hub.load import load
from nanogpt.model import GPT
from nanogpt.run.errors import visible
from nanogpt.text.generate import default_prompt, stream_text

# colored tokens have dark text, also on a dark page
STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.9 ui-monospace, monospace; }
.token { border-radius: 3px; color: #111 !important; }
.layers { overflow-x: auto; font: 13px ui-monospace, monospace; }
.layers td, .layers th { white-space: pre; padding: 2px 4px; text-align: center; }
"""
LONGEST_INSIDE = 128  # tokens of a text whose attention is shown: more would be too small to see


@torch.inference_mode()
def token_losses(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """The loss in nats (T - 1,) of each token of ids (T,) after the first.

    A text longer than block_size is read in windows that overlap by half, so that after the first
    window every token is predicted from at least half a block_size.
    """
    T, block_size = len(ids) - 1, model.config.block_size
    stride = max(1, block_size // 2)
    pieces = []
    for start in range(0, max(1, T - block_size + stride), stride):
        logits = model(ids[None, start : min(start + block_size, T)])[0]  # (t, V)
        pieces.append(logits[block_size - stride :] if start else logits)
    return F.cross_entropy(torch.cat(pieces).float(), ids[1:], reduction="none")


class Writer:
    """A model with its tokenizer: continues prompts, and shows how it reads texts."""

    def __init__(self, run: str, device: str, **options):
        """`options` are those of `nanogpt.hub.load.load`."""
        self.run, self.device = run, device
        self.model, self.tokenizer, _ = load(run, device, **options)

    def encode(self, text: str) -> torch.Tensor:
        """The tokens of a text (T,). Raises ValueError if it has unknown characters."""
        return torch.tensor(self.tokenizer.encode(text), device=self.device)

    def write(self, prompt: str, tokens, temperature, top_k, top_p, seed) -> Iterator[str]:
        """Yields the text so far. The page may deliver whole numbers as floats."""
        options = {"temperature": temperature, "top_k": int(top_k), "top_p": top_p}
        options |= {"seed": int(seed), "eos_id": self.tokenizer.eot_id}
        ids = self.encode(prompt).tolist()
        pieces = stream_text(self.model, self.tokenizer, ids, int(tokens), **options)
        yield from accumulate(pieces, initial=prompt)

    def paint(self, text: str) -> str:
        """The text as HTML, escaped, each token colored by its loss; ValueError if it is short."""
        ids = self.encode(text)
        if len(ids) < 2:
            raise ValueError("the text is too short: give at least 2 tokens")
        losses = token_losses(self.model, ids).tolist()
        painted = [self.name(ids[0].item())]
        for token, loss in zip(ids[1:].tolist(), losses, strict=True):
            # green to red, which is 6 nats: a probability of one in 400
            hue = 120 - 120 * min(loss / 6, 1)
            style = f"background:hsl({hue:.0f} 75% 75%)"
            name = self.name(token, space=" ")
            painted.append(f'<span class="token" style="{style}" title="{loss:.3f}">{name}</span>')
            painted.append("\n" * name.count("⏎"))
        mean = sum(losses) / len(losses)
        summary = f"{html.escape(self.run)}: {mean:.4f} nats per token, {len(losses):,} tokens"
        return f'<p>{summary}</p><div class="tokens">{"".join(painted)}</div>'

    def predict(self, ids: torch.Tensor, states: torch.Tensor) -> str:
        """HTML: what the layers with states (L, T, C) would predict after tokens ids (T,)."""
        rows = []
        for i, state in enumerate(states, start=1):
            cells = [f"<th>layer {i}</th>"]
            probs, tokens = lens(self.model, state).softmax(-1).max(-1)
            for p, token in zip(probs.tolist(), tokens.tolist(), strict=True):
                style = f"background:rgb(59 130 246 / {p:.0%})"
                cells.append(f'<td style="{style}" title="{p:.1%}">{self.name(token)}</td>')
            rows.append("".join(cells))
        rows.append("<th></th>" + "".join(f"<th>{self.name(i)}</th>" for i in ids.tolist()))
        return (
            "<p>What each layer would predict after each token; a stronger color is more likely. "
            "Above, rows are positions, and columns what they attend to.</p>"
            f'<div class="layers"><table><tr>{"</tr><tr>".join(rows[::-1])}</tr></table></div>'
        )

    def look_inside(self, text: str, layer: int) -> tuple[str, Figure, str]:
        """The painted text, a picture of the attention in `layer` (from 1), and predictions."""
        painted = self.paint(text)
        ids = self.encode(text)[: min(LONGEST_INSIDE, self.model.config.block_size)]
        weights, states = look(self.model, ids)
        names = [html.unescape(self.name(i)) for i in ids.tolist()]
        picture = draw_heads(weights[min(layer, len(weights)) - 1], names)
        return painted, picture, self.predict(ids, states)

    def name(self, token: int, space: str = "␣") -> str:
        """The text of a token as HTML, with visible white space."""
        text = self.tokenizer.decode([token]).replace("\n", "⏎").replace(" ", space)
        return html.escape(visible(text))


def draw_heads(weights: torch.Tensor, names: list[str]) -> Figure:
    """The attention weights (H, T, T) of a layer's heads, and some of the tokens' `names`."""
    columns = min(4, len(weights))
    rows = -(-len(weights) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
    places = range(0, len(names), -(-len(names) // 24))  # as many names as fit
    shown = [names[i].replace("$", r"\$") for i in places]  # no formulas
    shades = weights.sqrt().cpu().numpy()  # the root shows small weights
    for i, head in enumerate(shades, start=1):
        axes = figure.add_subplot(rows, columns, i, title=f"head {i}")
        axes.imshow(head, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(places, shown, rotation=90, fontsize=6)
        axes.set_yticks(places, shown, fontsize=6)
    return figure


def page(runs: list[str], device: str, **options):
    """The Gradio page for some runs."""
    import gradio as gr

    writers = [Writer(run, device, **options) for run in runs]

    @contextmanager
    def complaints():  # shows the page's user a ValueError, such as an unknown character
        try:
            yield
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    def write(*arguments):
        texts = [""] * len(writers)
        with complaints():
            for i, writer in enumerate(writers):
                for texts[i] in writer.write(*arguments):
                    yield texts if len(texts) > 1 else texts[0]  # Gradio takes no list of one

    def look_inside(text: str, layer: int):
        with complaints():
            return [part for writer in writers for part in writer.look_inside(text, layer)]

    private = {"api_visibility": "private"}
    with gr.Blocks(title="nanogpt playground", analytics_enabled=False) as blocks:
        with gr.Tab("Write"):
            prompt = default_prompt(writers[0].tokenizer)[0]
            arguments = [gr.Textbox(prompt, lines=2, label="prompt", elem_id="prompt")]
            with gr.Row():
                arguments += [
                    gr.Slider(1, 2000, 300, step=1, label="tokens"),
                    gr.Slider(0, 2, 0.8, step=0.05, label="temperature"),
                    gr.Slider(0, 500, 200, step=1, label="top-k (0: off)"),
                    gr.Slider(0, 1, 1, step=0.01, label="top-p"),
                    gr.Slider(0, 1000, 1, step=1, label="seed"),
                ]
            with gr.Row():
                start = gr.Button("Write", variant="primary", elem_id="write")
                stop = gr.Button("Stop")
            texts = []
            with gr.Row():
                for i, run in enumerate(runs):
                    texts.append(gr.Textbox(label=run, lines=16, elem_id=f"text-{i}"))
            stop.click(None, cancels=[start.click(write, arguments, texts, **private)])
        with gr.Tab("Look inside"):
            text = gr.Textbox(lines=4, label="text", elem_id="given")
            deepest = max(writer.model.config.n_layer for writer in writers)
            layer = gr.Dropdown(list(range(1, deepest + 1)), value=1, label="layer")
            button = gr.Button("Look inside", variant="primary", elem_id="look")
            insides = []
            for i in range(len(runs)):
                insides.append(gr.HTML(elem_id=f"painted-{i}"))
                insides.append(gr.Plot(show_label=False))
                insides.append(gr.HTML(elem_id=f"inside-{i}"))
            button.click(look_inside, [text, layer], insides, **private)
    return blocks


def serve(runs: list[str], device: str, port: int | None = None, **options):
    """Serves the page in the background; returns Gradio's app.

    By default it takes the first free port from 7860 on. `options` are those of
    `nanogpt.hub.load.load`. Raises ValueError or OSError.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: no request may leave
    import gradio as gr
    from starlette.middleware import Middleware  # Gradio brings it
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # another site's name may lead to this machine (DNS rebinding)
    own = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks = page(runs, device, **options)
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port or None,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [own]},
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**fonts),  # not Google's fonts
        css=STYLE,
    )
    print(f"the playground for {' and '.join(runs)} is at {blocks.local_url} (Ctrl-C to stop)")
    return blocks
