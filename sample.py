"""Make pictures from prompts, or one picture again from its own file.

python sample.py run=shapes_dit prompts='[a red circle,two blue squares]'
python sample.py from_image=<png>
"""

import sys

from ldm.commands.main import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
