"""A small file of every name that the example workflows have, so that they run as they are."""

import os
import subprocess
from pathlib import Path

from PIL import Image

from . import checkpoints
from .environment import Environment

MAKE_VAE = Path(__file__).with_name("make_vae.py")
T2V = "wan2.1_t2v_14B_fp16.safetensors"
I2V = "wan2.1_i2v_480p_14B_fp16.safetensors"
EXPERT = "wan2.2_t2v_{}_noise_14B_fp8_scaled.safetensors"
LORA = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_{}_noise.safetensors"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VISION_ENCODER = "clip_vision_h.safetensors"
VAE = "wan_2.1_vae.safetensors"  # make_vae.py gives it this name
# Of the tests alone: quantised as newer files are, and every model as a GGUF file beside it.
FP8_TENSORS = "fp8_tensors.safetensors"


def packed(name: str) -> str:
    """The GGUF file of a model of the workflows."""
    return name.replace(".safetensors", "-Q8_0.gguf")


def write_models(models: Path, environment: Environment) -> None:
    """Fills the folders of a base directory's `models`."""
    unets, loras = models / "diffusion_models", models / "loras"
    checkpoints.write_model(unets / T2V, checkpoints.T2V)
    checkpoints.write_model(unets / I2V, checkpoints.I2V)
    checkpoints.write_gguf_of(unets / packed(T2V), checkpoints.T2V)
    checkpoints.write_gguf_of(unets / packed(I2V), checkpoints.I2V)
    for seed, noise in enumerate(("high", "low"), start=1):
        expert = EXPERT.format(noise)
        checkpoints.write_fp8_scaled(unets / expert, checkpoints.T2V, seed=seed)
        checkpoints.write_gguf_of(unets / packed(expert), checkpoints.T2V, seed=seed)
        checkpoints.write_lora(loras / LORA.format(noise), checkpoints.T2V, seed=seed)
    checkpoints.write_fp8_tensors(unets / FP8_TENSORS, checkpoints.T2V, seed=3)
    subprocess.run(
        [environment.python, MAKE_VAE, "--cpu", "--output-directory", models / "vae"],
        cwd=environment.core,
        env={**os.environ, "PYTHONPATH": str(environment.core)},
        check=True,
        capture_output=True,
    )
    # Stand-ins answer for these two in a run; the page wants to find their names.
    (models / "text_encoders" / TEXT_ENCODER).touch()
    (models / "clip_vision" / VISION_ENCODER).touch()


def write_picture(folder: Path) -> None:
    """The first frame of the image-to-video workflow."""
    Image.new("RGB", (64, 64), (200, 60, 40)).save(folder / "example.png")
