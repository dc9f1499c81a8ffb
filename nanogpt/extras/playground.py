"""`nanogpt playground`: write with one or two models, talk to them, and see each token's loss.

    pip install -e '.[playground]' -c constraints.txt
    nanogpt playground out/shakespeare out/wide

A local Gradio page that loads nothing from the network. A token's colour shows its loss. Hover over
a token to see the five most likely tokens at its position. A model that was trained on
conversations has a tab to talk to it.
"""

import html
import os
import socket
from collections.abc import Iterator

import torch

from nanogpt import chat
from nanogpt.extras.dashboard.server import is_own
from nanogpt.hub.load import load
from nanogpt.model import GPT
from nanogpt.run.errors import visible
from nanogpt.sample import default_prompt, stream, stream_text, until

PORT = 7870
STYLE = """<style>
.tokens { white-space: pre-wrap; font: 15px/1.9 ui-monospace, monospace; padding-bottom: 9em; }
.token { position: relative; border-radius: 3px; color: #111; }
.token .likeliest { display: none; position: absolute; left: 0; top: 100%; z-index: 9;
  background: #222; color: #eee;
  padding: 6px 10px; border-radius: 4px; font-size: 13px; line-height: 1.4; white-space: pre; }
.token:hover { outline: 2px solid #555; } .token:hover .likeliest { display: block; }
</style>"""


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
        logits = model(ids[None, start : done + len(targets) - 1])[
            0, -len(targets) :
        ].float()  # (t, V)
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
    """A model with its tokenizer: continues prompts, and colours texts by their losses."""

    def __init__(self, run: str, device: str, which: str | None = None):
        self.run, self.device = run, device
        self.model, self.tokenizer, _ = load(run, device, which=which)

    def encode(self, text: str) -> torch.Tensor:
        """The tokens of a text (T,). Raises ValueError if it is empty or has unknown characters."""
        ids = self.tokenizer.encode(text)
        if not len(ids):
            raise ValueError("the text is empty: give at least one character")
        return torch.tensor(ids, device=self.device)

    def write(
        self,
        prompt: str,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
    ):
        """Yields the text so far, prompt included, after each piece."""
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        ids, text, eos_id = self.encode(prompt), prompt, self.tokenizer.eot_id
        drawn = stream(self.model, ids[None], max_new_tokens, eos_id=eos_id, **options)
        for piece in stream_text(
            self.tokenizer, until(eos_id, (token.item() for token in drawn)), ids
        ):
            text += piece
            yield text

    def answer(self, message: str, earlier: list[dict], max_new_tokens: int, temperature: float):
        """Yields the answer so far to a message that follows the `earlier` ones."""
        text, messages = "", [*earlier, {"role": "user", "content": message}]
        options = {"temperature": temperature, "top_k": 200}
        for piece in chat.answer(self.model, self.tokenizer, messages, max_new_tokens, **options):
            text += piece
            yield text

    def paint(self, text: str) -> str:
        """The text as HTML, escaped, each token coloured by its loss."""
        ids = self.encode(text)
        losses, probs, likeliest = (part.tolist() for part in token_losses(self.model, ids))
        show = self.visible
        painted = [f'<span class="token">{show([ids[0].item()])}</span>']
        for token, loss, p, best in zip(ids[1:].tolist(), losses, probs, likeliest, strict=True):
            rows = "\n".join(
                f"{q:6.1%}  {show([other], '␣')}" for q, other in zip(p, best, strict=True)
            )
            tip = f'<span class="likeliest">loss {loss:.3f}\n{rows}</span>'
            newline = "\n" if "\n" in self.tokenizer.decode([token]) else ""
            # green to red, which is 6 nats: a probability of one in 400
            colour = f"hsl({120 - 120 * min(loss / 6, 1):.0f} 75% 75%)"
            painted.append(
                f'<span class="token" style="background:{colour}">{show([token])}{tip}</span>'
                f"{newline}"
            )
        mean = sum(losses) / max(1, len(losses))
        summary = f"{len(losses):,} tokens predicted, {mean:.4f} nats per token "
        summary += f"by {html.escape(self.run)}"
        return f'{STYLE}<p>{summary}</p><div class="tokens">{"".join(painted)}</div>'

    def visible(self, ids: list[int], space: str = " ") -> str:
        """The text of tokens as HTML, with visible white space."""
        text = self.tokenizer.decode(ids).replace("\n", "⏎").replace("\t", "⇥").replace(" ", space)
        return html.escape(visible(text))


def take_turns(streams: list[Iterator[str]]) -> Iterator[list[str]]:
    """Advances streams in turns until all have ended; yields the latest value of each."""
    reached, running = [""] * len(streams), dict(enumerate(streams))
    while running:
        for i in list(running):
            try:
                reached[i] = next(running[i])
            except StopIteration:
                del running[i]
        yield list(reached)


class OwnPages:
    """ASGI middleware that refuses requests from other hosts' pages and to names not local."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope: dict, receive, send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin", "//localhost").partition("//")[
            2
        ]  # not all requests have one
        if scope["type"] == "lifespan" or (is_own(headers.get(b"host", "")) and is_own(origin)):
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"use http://127.0.0.1\n"})


def page(runs: list[str], device: str, which: str | None = None):
    """The Gradio page for one or two runs."""
    import gradio as gr

    writers = [Writer(run, device, which) for run in runs]

    def tell(error: ValueError):
        return gr.Error(html.escape(str(error)), print_exception=False)

    def write(*asked):
        try:
            for texts in take_turns([writer.write(*asked) for writer in writers]):
                yield texts if len(texts) > 1 else texts[0]
        except ValueError as error:
            raise tell(error) from None

    def paint(text: str):
        try:
            painted = [writer.paint(text) for writer in writers]
        except ValueError as error:
            raise tell(error) from None
        return painted if len(painted) > 1 else painted[0]

    with gr.Blocks(title="nanogpt playground", analytics_enabled=False) as blocks:
        with gr.Tab("Write"):
            prompt = gr.Textbox(
                default_prompt(writers[0].tokenizer)[0], lines=2, label="prompt", elem_id="prompt"
            )
            with gr.Row():
                asked = [
                    prompt,
                    gr.Slider(1, 2000, 300, step=1, label="tokens", elem_id="tokens"),
                    gr.Slider(0, 2, 0.8, step=0.05, label="temperature"),
                    gr.Slider(0, 500, 200, step=1, label="top-k (0: off)"),
                    gr.Slider(0, 1, 1, step=0.01, label="top-p"),
                    gr.Number(1, precision=0, minimum=0, label="seed"),
                ]
            with gr.Row():
                start, stop = (
                    gr.Button("Write", variant="primary", elem_id="write"),
                    gr.Button("Stop"),
                )
            with gr.Row():
                outputs = [
                    gr.Textbox(label=run, lines=16, elem_id=f"text-{i}")
                    for i, run in enumerate(runs)
                ]
            writing = start.click(write, asked, outputs, api_visibility="private")
            stop.click(None, cancels=[writing])
        with gr.Tab("Loss of a text"):
            text = gr.Textbox(lines=4, label="text", elem_id="given")
            button = gr.Button("Colour it", variant="primary", elem_id="paint")
            with gr.Row():
                painted = [gr.HTML(elem_id=f"painted-{i}") for i, _ in enumerate(runs)]
            button.click(paint, text, painted, api_visibility="private")
        for i, writer in enumerate(writers):
            if chat.can_chat(writer.tokenizer):
                with gr.Tab(f"Talk to {writer.run}"):
                    add_chat(gr, writer, i)
    return blocks


def add_chat(gr, writer: Writer, number: int) -> None:
    """A conversation with a model; Gradio's history has each message's text in parts."""

    def answer(message: str, history: list[dict], max_new_tokens: int, temperature: float):
        earlier = [
            {"role": said["role"], "content": plain_text(said["content"])} for said in history
        ]
        try:
            yield from writer.answer(message, earlier, max_new_tokens, temperature)
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
    """The text of a message in Gradio's history."""
    return (
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    )


def serve(
    runs: list[str], device: str, port: int | None = None, say=print, block: bool = True, which=None
):
    """Serves the page until Ctrl-C; with block=False returns Gradio's app at once.

    Raises ValueError or OSError.
    """
    if len(runs) > 2:
        raise ValueError(f"{len(runs)} runs: the playground shows one, or two side by side")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = (
        "False"  # before the import: no request may leave the machine
    )
    try:
        import gradio as gr
    except ImportError:
        raise ValueError(
            "the playground needs Gradio: pip install -e '.[playground]' -c constraints.txt"
        ) from None
    from starlette.middleware import Middleware  # Gradio brings it

    blocks = page(runs, device, which)
    fonts = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }  # not Google's
    options = {
        "app_kwargs": {"middleware": [Middleware(OwnPages)]},
        "quiet": True,
        "share": False,
        "ssr_mode": False,
        "footer_links": [],
        "theme": gr.themes.Default(**fonts),
    }
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port or free_port(),
        prevent_thread_lock=True,
        **options,
    )
    say(f"the playground for {' and '.join(runs)} is at {blocks.local_url} (Ctrl-C to stop)")
    if block:
        blocks.block_thread()
    return blocks


def free_port() -> int:
    """The first free port from PORT on."""
    for port in range(PORT, PORT + 100):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)):
                return port
    raise ValueError(f"ports {PORT} to {port} are all in use: choose another --port")
