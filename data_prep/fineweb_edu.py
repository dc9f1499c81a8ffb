"""FineWeb-Edu, educational web pages (Penedo et al. 2024), in its sample of 10 billion tokens.

    python -m data_prep.fineweb_edu                        # from the Hub into data/fineweb_edu
    python -m data_prep.fineweb_edu --source DIR           # from local copies of its files

About 10 billion GPT-2 tokens in 9.7 million documents, according to the data set's card. It takes
20 GB of disk, because the text is streamed and not kept. At 2.2 million tokens/s (two cores,
LOG.md) it takes 76 minutes, if the network keeps up (not run in full yet).
"""

from data_prep.text import prepare_known

if __name__ == "__main__":
    hub = "hf:HuggingFaceFW/fineweb-edu:sample-10BT"
    prepare_known(__doc__, hub, "data/fineweb_edu", val_fraction=0.001)
