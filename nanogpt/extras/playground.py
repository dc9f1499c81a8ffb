"""`nanogpt playground`: write with one or two models, talk to them, and look inside them.

    pip install -e '.[playground]' -c constraints.txt
    nanogpt playground out/shakespeare out/wide

A local Gradio page that loads nothing from the network. A token's color shows its loss. Hover over
a token to see the five most likely tokens at its position. A third tab shows what each head attends
to and what each layer would predict. A model that was trained on conversations has a tab to talk to
it.
"""

import base64
import html
import io
import os
from collections.abc import Iterator
from itertools import accumulate, zip_longest

import torch

from nanogpt import chat
from nanogpt.extras.dashboard.server import is_own
from nanogpt.extras.inside import lens, look
from nanogpt.hub.load import load
from nanogpt.model import GPT
from nanogpt.run.errors import visible
from nanogpt.sample import default_prompt, stream, stream_text, until

# colored tokens have dark text, also on a dark page
STYLE = """
[data-testid=block-info], .gradio-container p, .tokens { overflow-wrap: anywhere; }
.tokens { white-space: pre-wrap; font: 15px/1.9 ui-monospace, monospace; }
.token { border-radius: 3px; }
.token[style] { color: #111 !important; }
.token:hover { outline: 2px solid #888; }
.likeliest { display: none; position: fixed; right: 16px; bottom: 16px; z-index: 9;
  background: #222; color: #eee !important; padding: 8px 12px; border-radius: 4px;
  font-size: 13px; line-height: 1.4; white-space: pre; }
.token:hover .likeliest { display: block; }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr));
  gap: 16px; }
.heads figure { margin: 0; }
.heads svg { width: 100%; font: 4.5px ui-monospace, monospace; }
.heads text { fill: currentColor; text-anchor: end; }
.heads rect { fill: none; stroke: #888; stroke-width: 0.4; }
.heads image { image-rendering: pixelated; }
.layers { overflow-x: auto; }
.layers table { border: 0; border-collapse: separate; border-spacing: 2px;
  font: 13px ui-monospace, monospace; }
.layers td, .layers th { border: 0; white-space: pre; padding: 2px 4px; text-align: center; }
.layers th:first-child { position: sticky; left: 0; background: var(--body-background-fill); }
.layers td { border-radius: 3px; }
.complaint { color: #b00020 !important; }
.dark .complaint { color: #ff8a80 !important; }
"""
LONGEST_INSIDE = 128  # tokens of a text whose attention is shown: more would be too small to see
SLIDERS = [  # lowest, highest, first value, step, label
    (1, 2000, 300, 1, "tokens"),
    (0, 2, 0.8, 0.05, "temperature"),
    (0, 500, 200, 1, "top-k (0: off)"),
    (0, 1, 1, 0.01, "top-p"),
    (0, 1000, 1, 1, "seed"),
]


@torch.inference_mode()
def token_losses(
    model: GPT, ids: torch.Tensor, k: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss in nats (T - 1,) of each token of ids (T,) after the first, and likely tokens.

    These are the probabilities of the k most likely tokens at its position and the tokens, both
    (T - 1, k).

    A text longer than block_size is read in windows that overlap by half, so that after the first
    window every token is predicted from at least half a block_size.
    """
    block_size = model.config.block_size
    losses, probs, tokens = [], [], []
    start, done = 0, 1  # done: tokens with a loss, and the first one, which has none
    while done < len(ids):
        targets = ids[done : start + block_size + 1]
        logits = model(ids[None, start : done + len(targets) - 1])[0, -len(targets) :]  # (t, V)
        logits = logits.float()
        likeliest = logits.softmax(-1).topk(min(k, logits.size(-1)))
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        probs.append(likeliest.values)
        tokens.append(likeliest.indices)
        done += len(targets)
        start = max(0, done - 1 - block_size // 2)
    if not losses:  # a single token
        return torch.empty(0), torch.empty(0, k), torch.empty(0, k, dtype=torch.long)
    return torch.cat(losses), torch.cat(probs), torch.cat(tokens)


class Writer:
    """A model with its tokenizer: continues prompts, and colors texts by their losses."""

    def __init__(self, run: str, device: str, **options):
        """`options` are those of `nanogpt.hub.load.load`."""
        self.run, self.device = run, device
        self.model, self.tokenizer, _ = load(run, device, **options)

    def encode(self, text: str) -> torch.Tensor:
        """The tokens of a text (T,). Raises ValueError if it is empty or has unknown characters."""
        ids = self.tokenizer.encode(text)
        if not len(ids):
            raise ValueError("the text is empty: give at least one character")
        return torch.tensor(ids, device=self.device)

    def write(self, prompt: str, max_new_tokens: int, *options) -> Iterator[str]:
        """Yields the text so far. `options` are temperature, top_k, top_p and a seed."""
        ids, eos_id = self.encode(prompt), self.tokenizer.eot_id
        named = dict(zip(("temperature", "top_k", "top_p", "seed"), options, strict=True))
        drawn = stream(self.model, ids[None], max_new_tokens, eos_id=eos_id, **named)
        tokens = until(eos_id, (token.item() for token in drawn))
        for text in accumulate(stream_text(self.tokenizer, tokens, ids)):
            yield prompt + text

    def answer(self, messages: list[dict], max_new_tokens: int, temperature: float):
        """Yields the answer so far to a conversation."""
        options = {"temperature": temperature, "top_k": 200}
        yield from accumulate(
            chat.answer(self.model, self.tokenizer, messages, max_new_tokens, **options)
        )

    def paint(self, text: str) -> str:
        """The text as HTML, escaped, each token colored by its loss."""
        ids = self.encode(text)
        losses, probs, likeliest = (part.tolist() for part in token_losses(self.model, ids))
        painted = [f'<span class="token">{self.visible([ids[0].item()])}</span>']
        for token, loss, p, best in zip(ids[1:].tolist(), losses, probs, likeliest, strict=True):
            rows = [f"{q:6.1%}  {self.visible([i], '␣')}" for q, i in zip(p, best, strict=True)]
            tip = "\n".join([f"loss {loss:.3f}", *rows])
            # green to red, which is 6 nats: a probability of one in 400
            hue = 120 - 120 * min(loss / 6, 1)
            painted.append(
                f'<span class="token" style="background:hsl({hue:.0f} 75% 75%)">'
                f'{self.visible([token])}<span class="likeliest">{tip}</span></span>'
            )
            if "\n" in self.tokenizer.decode([token]):
                painted.append("\n")
        mean = sum(losses) / max(1, len(losses))
        summary = f"{html.escape(self.run)}: {mean:.4f} nats per token, {len(losses):,} tokens"
        return f'<p>{summary}</p><div class="tokens">{"".join(painted)}</div>'

    def look_inside(self, text: str, layer: int) -> str:
        """Each head's attention in `layer` (from 1) and what each layer would predict, as HTML."""
        ids = self.encode(text)
        read = ids[: min(LONGEST_INSIDE, self.model.config.block_size)]
        weights, states = look(self.model, read)
        layer = min(layer, len(weights))
        names = [self.visible([i], "␣") for i in read.tolist()]
        heads = "".join(
            f"<figure><figcaption>layer {layer}, head {i}</figcaption>{picture(w, names)}</figure>"
            for i, w in enumerate(weights[layer - 1], start=1)
        )
        rows = [f"<th></th>{''.join(f'<th>{name}</th>' for name in names)}"]
        for i, state in reversed(list(enumerate(states, start=1))):
            probs, tokens = lens(self.model, state).softmax(-1).max(-1)
            cells = "".join(
                f'<td style="background:rgb(59 130 246 / {p:.0%})" title="{p:.1%}">'
                f"{self.visible([token], '␣')}</td>"
                for p, token in zip(probs.tolist(), tokens.tolist(), strict=True)
            )
            rows.append(f"<th>layer {i}</th>{cells}")
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return (
            f"<p>{html.escape(self.run)}: the first {len(read):,} of {len(ids):,} tokens. "
            "Rows of a picture are positions; columns are what they attend to.</p>"
            f'<div class="heads">{heads}</div>'
            "<p>What each layer would predict after each token. "
            "The stronger the color, the likelier.</p>"
            f'<div class="layers"><table>{table}</table></div>'
        )

    def visible(self, ids: list[int], space: str = " ") -> str:
        """The text of tokens as HTML, with visible white space."""
        text = self.tokenizer.decode(ids).replace("\n", "⏎").replace("\t", "⇥").replace(" ", space)
        return html.escape(visible(text))


def picture(weights: torch.Tensor, names: list[str]) -> str:
    """A head's attention weights (T, T) as SVG: a pixel a weight, and some tokens' `names`."""
    from PIL import Image  # Gradio brings it

    T = len(names)
    rgba = torch.tensor([59, 130, 246, 0], dtype=torch.uint8).repeat(T, T, 1)  # (T, T, 4)
    rgba[..., 3] = (255 * weights.sqrt()).byte()  # the root shows small weights, too
    file = io.BytesIO()
    Image.fromarray(rgba.cpu().numpy(), "RGBA").save(file, "PNG")
    pixels = base64.b64encode(file.getvalue()).decode()
    labels = []
    for i in range(0, T, -(-T // 16)):  # as many as fit
        place = f"{100 * (i + 0.5) / T + 1.5:.1f}"
        labels.append(f'<text x="-1" y="{place}">{names[i]}</text>')
        labels.append(f'<text x="-101" y="{place}" transform="rotate(-90)">{names[i]}</text>')
    return (
        '<svg viewBox="-20 -3 121 123"><rect width="100" height="100"/>'
        f'<image width="100" height="100" href="data:image/png;base64,{pixels}"/>'
        f"{''.join(labels)}</svg>"
    )


def take_turns(streams: list[Iterator[str]]) -> Iterator[list[str]]:
    """Advances streams in turns until all have ended; yields the latest text of each."""
    latest = [""] * len(streams)
    for texts in zip_longest(*streams):
        latest = [text or before for text, before in zip(texts, latest, strict=True)]
        yield latest


class OwnPages:
    """ASGI middleware that refuses requests from other hosts' pages and to names not local."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope: dict, receive, send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin", "//localhost")  # not all requests have one
        own = is_own(headers.get(b"host", "")) and is_own(origin.partition("//")[2])
        if scope["type"] == "lifespan" or own:
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"use http://127.0.0.1\n"})


def page(runs: list[str], device: str, **options):
    """The Gradio page for one or two runs; `options` are those of `nanogpt.hub.load.load`."""
    import gradio as gr

    writers = [Writer(run, device, **options) for run in runs]

    def shown(results: Iterator[list[str]]) -> Iterator[list]:
        """The results and no complaint; for a user's mistake the results so far and a complaint."""
        try:
            for result in results:
                yield [*result, ""]
        except ValueError as error:
            kept = [gr.skip() for _ in writers]
            yield [*kept, f'<p class="complaint">{html.escape(str(error))}</p>']

    def write(*arguments):
        yield from shown(take_turns([writer.write(*arguments) for writer in writers]))

    def paint(text: str):
        yield from shown([writer.paint(text) for writer in writers] for _ in range(1))

    def look_inside(text: str, layer: int):
        yield from shown([writer.look_inside(text, layer) for writer in writers] for _ in range(1))

    with gr.Blocks(title="nanogpt playground", analytics_enabled=False) as blocks:
        gr.HTML("<h1>nanogpt playground</h1>")
        with gr.Tab("Write"):
            prompt = default_prompt(writers[0].tokenizer)[0]
            arguments = [gr.Textbox(prompt, lines=2, label="prompt", elem_id="prompt")]
            with gr.Row():
                for low, high, value, step, label in SLIDERS:
                    arguments.append(
                        gr.Slider(low, high, value, step=step, label=label, min_width=300)
                    )
            with gr.Row():
                start = gr.Button("Write", variant="primary", elem_id="write")
                stop = gr.Button("Stop")
            complaint = gr.HTML(padding=False)
            with gr.Row():
                texts = [
                    gr.Textbox(label=run, lines=16, min_width=300, elem_id=f"text-{i}")
                    for i, run in enumerate(runs)
                ]
            outputs = [*texts, complaint]
            writing = start.click(write, arguments, outputs, api_visibility="private")
            stop.click(None, cancels=[writing])
        with gr.Tab("Loss of a text"):
            text = gr.Textbox(lines=4, label="text", elem_id="given")
            button = gr.Button("Show the loss", variant="primary", elem_id="paint")
            complaint = gr.HTML(padding=False)
            painted = []
            with gr.Row():
                for i, _ in enumerate(runs):
                    with gr.Column(min_width=300):
                        painted.append(gr.HTML(elem_id=f"painted-{i}"))
            button.click(paint, text, [*painted, complaint], api_visibility="private")
        with gr.Tab("Look inside"):
            text = gr.Textbox(lines=4, label="text", elem_id="read")
            deepest = max(writer.model.config.n_layer for writer in writers)
            layers = list(range(1, deepest + 1))
            layer = gr.Dropdown(layers, value=1, label="layer whose attention is shown")
            button = gr.Button("Look inside", variant="primary", elem_id="look")
            complaint = gr.HTML(padding=False)
            insides = [gr.HTML(elem_id=f"inside-{i}") for i, _ in enumerate(runs)]
            outputs = [*insides, complaint]
            button.click(look_inside, [text, layer], outputs, api_visibility="private")
        for i, writer in enumerate(writers):
            if chat.can_chat(writer.tokenizer):
                with gr.Tab(f"Talk to {writer.run}"):
                    add_chat(gr, writer, i)
    return blocks


def add_chat(gr, writer: Writer, number: int) -> None:
    """A conversation with a model."""

    def answer(message: str, history: list[dict], max_new_tokens: int, temperature: float):
        messages = [{"role": m["role"], "content": plain_text(m["content"])} for m in history]
        messages.append({"role": "user", "content": message})
        try:
            yield from writer.answer(messages, max_new_tokens, temperature)
        except ValueError as error:  # too long, or a character that the model does not know
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    gr.ChatInterface(
        answer,
        # no button that shares, which would upload the conversation
        chatbot=gr.Chatbot(
            label=writer.run, render_markdown=False, buttons=["copy"], elem_id=f"chat-{number}"
        ),
        additional_inputs=[
            gr.Slider(1, 2000, 200, step=1, label="tokens"),
            gr.Slider(0, 2, 0.8, step=0.05, label="temperature"),
        ],
        api_visibility="private",
    )


def plain_text(content: str | list[dict]) -> str:
    """The text of a message in Gradio's history, which may have it in parts."""
    parts = [{"text": content}] if isinstance(content, str) else content
    return "".join(part.get("text", "") for part in parts)


def serve(runs: list[str], device: str, port: int | None = None, say=print, block=True, **options):
    """Serves the page until Ctrl-C; with block=False returns Gradio's app at once.

    By default it takes the first free port from 7860 on. `options` are those of
    `nanogpt.hub.load.load`. Raises ValueError or OSError.
    """
    if len(runs) > 2:
        raise ValueError(f"{len(runs)} runs: the playground shows one, or two side by side")
    # before the import: no request may leave the machine
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise ValueError(
            "the playground needs Gradio: pip install -e '.[playground]' -c constraints.txt"
        ) from None
    from starlette.middleware import Middleware  # Gradio brings it

    blocks = page(runs, device, **options)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port or None,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(OwnPages)]},
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**fonts),  # not Google's fonts
        css=STYLE,
    )
    say(f"the playground for {' and '.join(runs)} is at {blocks.local_url} (Ctrl-C to stop)")
    if block:
        blocks.block_thread()
    return blocks
