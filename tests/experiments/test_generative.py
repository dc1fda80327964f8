"""What the unsupervised experiments share, without training: data, schedule, mistakes."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import adversarial, generative, tasks
from experiments.images import Splits
from experiments.unsupervised import (
    beta_vae_fashion,
    dcgan_mnist,
    gan_grid,
    vae_mnist,
    wgan_gp_fashion,
)
from paradigms.core.errors import InputError


@pytest.mark.parametrize("binarisation", ["dynamic", "static"])
def test_held_out_images_are_the_same_bits_for_everyone(binarisation):
    config = vae_mnist.Config(smoke=True, binarisation=binarisation)
    first, second = generative.load_bits(config), generative.load_bits(config)
    for part in ("validation", "test"):
        image = getattr(first, part)["image"]
        assert set(np.unique(image)) == {0, 255}
        np.testing.assert_array_equal(image, getattr(second, part)["image"])
    # Training images are drawn at every update, or once.
    grey = ((first.train["image"] > 0) & (first.train["image"] < 255)).any()
    assert grey == (binarisation == "dynamic")


def test_bits_have_the_intensities_for_probabilities():
    image = np.full((200, 10, 10, 1), 51, np.uint8)
    image[:, 0] = 255
    bits = generative.bits({"image": image})["image"]
    assert (bits[:, 0] == 255).all()
    assert (bits[:, 1:] == 255).mean() == pytest.approx(0.2, abs=0.01)


def test_the_schedule_is_that_of_3280_passes():
    passes = 3280
    schedule = generative.burda_schedule(1e-3, passes)
    rates = np.asarray([schedule(step) for step in range(passes)])
    stages, lengths = np.unique(rates.round(9), return_counts=True)
    np.testing.assert_allclose(stages[::-1], 1e-3 * 10 ** (-np.arange(8) / 7), rtol=1e-4)
    assert lengths[::-1].tolist() == [3**i for i in range(8)]
    # A shorter training has the same stages.
    short = generative.burda_schedule(1e-3, 328)
    ends = [short(108), short(109), short(327)]
    np.testing.assert_allclose(ends, [1e-3 * 10 ** (-6 / 7), 1e-4, 1e-4], rtol=1e-5)


def test_images_outside_of_the_support_are_refused():
    good = {"image": np.ones((2, 4, 4, 1), np.float32)}
    generative.check_splits(Splits(good, None, good))
    for value, words in ((-1.0, "has values from -1 to -1"), (np.nan, "NaN")):
        bad = {"image": np.full((2, 4, 4, 1), value, np.float32)}
        with pytest.raises(InputError, match=rf"image of the test split.*{words}"):
            generative.check_splits(Splits(good, None, bad))


def test_training_data_with_nan_is_refused():
    tasks.check_finite({"x": np.ones(3), "label": np.arange(3)})
    with pytest.raises(
        InputError, match=r"training data\['x'\]: 2 of 3 values are NaN or infinite"
    ):
        tasks.check_finite({"x": np.asarray([1.0, np.nan, np.inf])})
    tasks.check_finite(())


@pytest.mark.parametrize("betas", [(4.0,), (4.0, 1.0), (1.0, 1.0), (-1.0, 2.0)])
def test_betas_must_rise(betas):
    config = beta_vae_fashion.Config(smoke=True, betas=betas)
    with pytest.raises(
        InputError, match="--betas .*: expected two or more, rising from at least 0"
    ):
        beta_vae_fashion.main(config)


@pytest.mark.parametrize("experiment", [dcgan_mnist, gan_grid, wgan_gp_fashion])
def test_counts_of_a_gan_are_checked_before_anything_is_trained(experiment, tmp_path):
    config = experiment.Config(smoke=True, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="--critic-steps 0: expected at least 1"):
        experiment.main(replace(config, critic_steps=0))
    least = 1 if experiment is gan_grid else 65
    with pytest.raises(InputError, match=f"--samples {least - 1}: expected at least {least}"):
        experiment.main(replace(config, samples=least - 1))
    with pytest.raises(InputError, match="--accumulate: adversaries take turns"):
        experiment.main(replace(config, accumulate=2))
    if experiment is not gan_grid:
        for wrong in (1, config.latent + 1):
            message = f"--categories {wrong}: expected 0 for none, or 2 to --latent {config.latent}"
            with pytest.raises(InputError, match=message):
                experiment.main(replace(config, categories=wrong))
    adversarial.check(replace(config, samples=least))
    assert not (tmp_path / "run").exists()
