"""What the playground computes, and whom it serves; how it looks is tested in a browser, in tests/integration."""

import dataclasses
import http.client
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from texts import write_data

from nanogpt import GPT
from nanogpt.extras import playground
from nanogpt.extras.playground import Writer, token_losses
from nanogpt.text.tokenizer import load_tokenizer

HOSTILE = "<script>alert('&')</script>\n"


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(dataclasses.replace(TINY, vocab_size=20)).eval()


@pytest.fixture
def hostile_writer(tmp_path, monkeypatch) -> Writer:
    """A model whose characters can spell a script."""
    write_data(tmp_path / "data", HOSTILE * 20)
    tokenizer = load_tokenizer(tmp_path / "data")
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size)).eval()
    monkeypatch.setattr(playground, "load", lambda *args, **options: (model, tokenizer, None))
    return Writer("<b>run</b>", "cpu")


@pytest.mark.parametrize("length", [9, 17, 18, 25, 50])
def test_in_a_long_text_each_token_has_half_a_context_at_least(model, length):
    ids = torch.randint(20, (length,), generator=torch.Generator().manual_seed(0))
    losses = token_losses(model, ids)
    assert losses.shape == (length - 1,)
    for i in range(1, length):
        contexts = [ids[None, i - n : i] for n in range(min(i, 16 // 2 + 1), min(i, 16) + 1)]
        with torch.no_grad():
            possible = [F.cross_entropy(model(context)[:, -1], ids[i : i + 1]).item() for context in contexts]
        assert min(abs(losses[i - 1].item() - loss) for loss in possible) < 1e-5


def test_a_painted_text_is_escaped_with_a_loss_for_each_token(hostile_writer):
    body = hostile_writer.paint(HOSTILE)
    assert set(re.findall(r"</?(\w+)", body)) == {"p", "div", "span"}
    assert "&lt;b&gt;run&lt;/b&gt;" in body
    ids = hostile_writer.encode(HOSTILE)
    shown = [float(loss) for loss in re.findall(r'title="(.*?)"', body)]
    assert shown == pytest.approx(token_losses(hostile_writer.model, ids).tolist(), abs=6e-4)


def test_a_look_inside_is_escaped_with_a_picture_of_each_head_and_a_prediction_of_each_layer(hostile_writer):
    _, figure, body = hostile_writer.look_inside(HOSTILE, 2)
    assert {"script", "b"}.isdisjoint(re.findall(r"</?(\w+)", body)) and "&lt;" in body
    read, layers = min(len(HOSTILE), TINY.block_size), TINY.n_layer
    assert len(figure.axes) == TINY.n_head and body.count("<td") == layers * read
    # what the last layer predicts is what the model does
    model, ids = hostile_writer.model, hostile_writer.encode(HOSTILE)[:read]
    probs = model(ids[None]).softmax(-1).max(-1).values[0].tolist()
    assert re.findall(r'title="(.*?)"', body)[:read] == [f"{p:.1%}" for p in probs]


def test_writing_grows_by_what_sampling_yields_and_the_seed_decides(hostile_writer):
    first, same, other = (list(hostile_writer.write("<", 10, 1.0, 0, 1.0, seed)) for seed in (1, 1, 2))
    assert [len(text) for text in first] == list(range(1, 12)) and first[-1].startswith("<")
    assert same == first and other[-1] != first[-1]


def test_a_number_box_may_give_floats(hostile_writer):
    whole = list(hostile_writer.write("<", 10, 1.0, 5, 1.0, 1))
    assert list(hostile_writer.write("<", 10.5, 1.0, 5.5, 1.0, 1.5)) == whole


@pytest.mark.parametrize("text, complaint", [("", "at least 2"), ("<", "at least 2"), ("Zz", "'Z'")])
def test_a_text_that_the_model_cannot_read_is_named(hostile_writer, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        hostile_writer.paint(text)


def test_the_real_page_answers_this_machine_alone(hostile_writer):
    pytest.importorskip("gradio")
    blocks = playground.serve(["a run"], "cpu")

    def status(method: str, path: str, **headers) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", blocks.server_port, timeout=10)
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        found = connection.getresponse().status
        connection.close()
        return found

    try:
        assert blocks.local_url.startswith("http://127.0.0.1:") and blocks.share_url is None
        paths = blocks.app.openapi()["paths"]
        routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        assert {("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")} <= routes and len(routes) > 20
        for method, path in sorted(routes):
            assert status(method, re.sub("{.*?}", "x", path), Host="evil.com") == 400, path
        assert status("GET", "/") == status("GET", "/config", Host="localhost:1") == 200
    finally:
        blocks.close()
