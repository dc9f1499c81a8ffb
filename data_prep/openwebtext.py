"""OpenWebText, the open copy of GPT-2's training text (Gokaslan and Cohen 2019).

    python -m data_prep.openwebtext                        # from the Hub into data/openwebtext
    python -m data_prep.openwebtext --source DIR           # from local copies of its files

About 9.04 billion GPT-2 tokens in 8,013,769 documents. nanoGPT, which holds out the same share,
counts 9,035,582,198 for training and 4,434,897 for validation. It takes 18 GB of disk, because the
text is streamed and not kept. At 2.2 million tokens/s (two cores, LOG.md) it takes 68 minutes, if
the network keeps up (not run in full yet).
"""

from data_prep.text import prepare_known

if __name__ == "__main__":
    prepare_known(__doc__, "hf:Skylion007/openwebtext", "data/openwebtext", val_fraction=0.0005)
