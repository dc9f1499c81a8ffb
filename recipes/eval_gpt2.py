"""Evaluates the four sizes of GPT-2 on a data set, to compare a model of your own with.

    python recipes/eval_gpt2.py
    python -m data_prep.text my_notes/ --tokenizer gpt2 --out data/mine_gpt2
    python recipes/eval_gpt2.py --data data/mine_gpt2 --models gpt2 gpt2-medium out/mine_gpt2

Downloads 0.5, 1.5, 3.2 and 6.4 GB. Bits per byte compare across tokenizers, unlike losses.
"""

from pathlib import Path

from data_prep import shakespeare
from nanogpt.cli.options import pick_device
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate
from nanogpt.hub.load import check_tokenizer, load
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import OneLineParser

SIZES = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]


def main() -> None:
    """Prints a line for each model."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "--data", default="data/shakespeare_gpt2", help="a data directory in GPT-2's encoding"
    )
    parser.add_argument(
        "--models", nargs="+", default=SIZES, help="Hub names, directories or out directories"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="sequences at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    if args.data == parser.get_default("data") and not Path(args.data).exists():
        shakespeare.prepare(args.data, "gpt2")
    device = pick_device(args.device)
    print(f"{'model':<24}{'parameters':>16}{'loss':>9}{'perplexity':>12}{'bits per byte':>15}")
    for name in args.models:
        model, tokenizer, _ = load(name, device)
        data = TokenDataset(args.data, "val", model.config.block_size, model.config.vocab_size)
        check_tokenizer(tokenizer, load_tokenizer(args.data), args.data, name)
        result = evaluate(model, data, args.batch_size, device)
        print(
            f"{name:<24}{model.get_num_params():>16,}{result['val_loss']:>9.4f}{result['val_perplexity']:>12.2f}"
            f"{result['val_bpb']:>15.4f}"
        )


if __name__ == "__main__":
    with user_errors():
        main()
