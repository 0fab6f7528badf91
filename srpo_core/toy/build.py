"""Builds the weights of the toy world from nothing: `python -m srpo_core.toy.build`.

One to two hours on two cores, seeded. Stages: vae; clip (with its tokenizer, finished on the VAE's decodes); judge (on
decodes); flux (on the VAE's latents and the CLIP's text). A stage reads what the earlier ones left in the folder.
On Linux, MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=200000000 in the
environment makes it up to twice as fast: half of the time goes into page faults otherwise.
"""

import argparse
import logging
import time
from pathlib import Path

import torch

from . import models, pictures, report
from .judge import Judge, load_judge
from .tokenizer import write_tokenizer
from .train_clip import train_clip
from .train_flux import FEW_PHOTOS, initialise, train_flux
from .train_judge import train_judge
from .train_vae import train_vae
from .training import save_weights, scaled

log = logging.getLogger(__name__)


def looked_at(scale: float):
    """How many pictures a report measures: 200, fewer in a small build."""
    return max(4, scaled(200, min(scale, 1.0)))


def build_vae(out: Path, scale: float):
    """The whole autoencoder first, then its decoder alone: the latent space settles early, sharpness takes longer."""
    torch.manual_seed(0)
    vae = models.new_vae()
    train_vae(vae, scale)
    train_vae(vae, scale, seed=11, steps=1000, muon_lr=0.01, decoder_only=True)
    save_weights(vae, out / "vae.safetensors")
    report.show("vae", report.vae_report(models.load_vae(out / "vae.safetensors"), looked_at(scale)))


def build_clip(out: Path, scale: float):
    """Both towers on drawings, then the image tower alone on decodes."""
    write_tokenizer(out / "tokenizer")
    tokenizer = models.load_tokenizer(out / "tokenizer")
    vae = models.load_vae(out / "vae.safetensors")
    torch.manual_seed(0)
    clip = models.new_clip()
    train_clip(clip, tokenizer, scale=scale)
    train_clip(clip, tokenizer, vae, scale, seed=12, steps=250, images_only=True)
    save_weights(clip, out / "clip.safetensors")
    clip = models.load_clip(out / "clip.safetensors")
    report.show("clip", report.clip_report(clip, tokenizer, vae, looked_at(scale)))


def build_judge(out: Path, scale: float):
    """The judge, on decodes of the finished VAE."""
    vae = models.load_vae(out / "vae.safetensors")
    torch.manual_seed(0)
    judge = Judge()
    train_judge(judge, vae, scale)
    save_weights(judge, out / "judge.safetensors")
    report.show("judge", report.judge_report(load_judge(out / "judge.safetensors"), vae, looked_at(scale)))


def build_flux(out: Path, scale: float):
    """The FLUX, on latents of the VAE and text of the CLIP, with fewer photos in the end; measured by the judge."""
    vae = models.load_vae(out / "vae.safetensors")
    clip = models.load_clip(out / "clip.safetensors")
    tokenizer = models.load_tokenizer(out / "tokenizer")
    torch.manual_seed(0)
    flux = models.new_flux()
    initialise(flux)
    train_flux(flux, vae, clip, tokenizer, scale=scale)
    train_flux(flux, vae, clip, tokenizer, scale=scale, seed=13, steps=700, muon_lr=0.012, photo_share=FEW_PHOTOS)
    save_weights(flux, out / "flux.safetensors")
    flux = models.load_flux(out / "flux.safetensors")
    judge = load_judge(out / "judge.safetensors")
    scenes = pictures.all_scenes()[: looked_at(scale)] * 4
    report.show("flux", report.flux_report(flux, vae, clip=clip, tokenizer=tokenizer, judge=judge, scenes=scenes)[0])


STAGES = dict(vae=build_vae, clip=build_clip, judge=build_judge, flux=build_flux)


def build(out: str | Path, stage: str = "all", scale: float = 1.0):
    """Run one stage or all of them; `scale` multiplies the number of steps and, below 1, of pictures."""
    out = Path(out)
    for name in STAGES if stage == "all" else (stage,):
        start = time.time()
        STAGES[name](out, scale)
        log.info("stage %s took %.1f minutes", name, (time.time() - start) / 60)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(models.WEIGHTS), help="folder for the weights (default: %(default)s)")
    parser.add_argument("--stage", default="all", choices=("all", *STAGES), help="what to build (default: all)")
    parser.add_argument(
        "--minutes-scale", type=float, default=1.0, help="1 takes one to two hours; 0.01 is a smoke test"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    build(options.out, options.stage, options.minutes_scale)


if __name__ == "__main__":
    main()
