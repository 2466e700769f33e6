"""`python -m hf_kd`, so that `torchrun -m hf_kd train …` and `accelerate launch -m hf_kd train …` work."""

from .cli import main

if __name__ == "__main__":
    main()
