"""Train an autoencoder or a diffusion model.

python train.py experiment=shapes_dit                     a recipe of configs/experiment
python train.py experiment=shapes_dit network.depth=8     with one value changed
python train.py -m experiment=shapes_dit seed=0,1,2       a sweep
python train.py resume=runs/shapes_dit/<run id>           go on where a run stopped
python train.py experiment=shapes_dit --cfg job           show the config
"""

import sys

from ldm.training import stopping

if __name__ == "__main__":
    stopping.listen()  # before torch is imported: a signal in these seconds is not lost

    from ldm.commands.launch import launch

    launch(sys.argv[1:])
