"""The tiny Shakespeare speedrun: the lowest loss in 2, 15 or 60 minutes on two CPU cores.

    make speedrun TRACK=2  # seeds 1, 2 and 3, or:
    python recipes/speedrun.py --track=2 --seed=1 --seeds=3
    nanogpt eval out/speedrun-2-seed* --checkpoint=last --precision=fp32

Rules and records are in docs/speedrun.md. The learning rate follows the clock: a faster machine
takes more steps. To try an idea, pass flags or change the track.
"""

from dataclasses import replace

import shakespeare_best

from data_prep import shakespeare
from nanogpt.run.flags import settings_parser
from nanogpt.train import main

# the entry is recipes/shakespeare_best.py; evaluated at the start and at the end
TRAIN = replace(shakespeare_best.TRAIN, eval_interval=1_000_000, log_interval=1)
SMALL = shakespeare_best.MODEL
LARGE = replace(SMALL, n_layer=5, n_head=5, n_embd=160, n_inner=416)
# by minutes: the longer a track, the more often it reads the text, and the more decay it needs
TRACKS = {
    2: (SMALL, replace(TRAIN, short_block_iters=300, weight_decay=0.1)),
    15: (LARGE, replace(TRAIN, short_block_iters=1000, weight_decay=0.3)),
    60: (LARGE, replace(TRAIN, short_block_iters=3000, weight_decay=0.5)),
}

if __name__ == "__main__":
    parser = settings_parser(SMALL, TRAIN, __doc__)
    parser.add_argument("--track", type=int, choices=TRACKS, default=2, help="minutes")
    given = vars(parser.parse_args())
    track = given.pop("track")
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    model, train = TRACKS[track]
    train = replace(train, train_minutes=float(track), out_dir=f"out/speedrun-{track}")
    main(model, train, prepare=shakespeare.prepare, argv=flags)
