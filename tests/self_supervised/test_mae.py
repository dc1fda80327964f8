import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated
from paradigms.data.patches import patchify, unpatchify
from paradigms.self_supervised.mae import (
    mae,
    masked_error,
    patch_targets,
    random_masking,
    reconstruct,
)

SGD = optimizers.sgd(1.0)
SIZE = 2  # of a patch; images are 4x6 with two channels, 6 patches of 8 values
PATCHES, VALUES = 6, 8


def gather(tokens, index):
    return jnp.take_along_axis(tokens, index[..., None], axis=1)


# Keeps the pixels of the kept patches, behind a class token of zeros.
def encode(params, model_state, image, kept, key=None, train=False):
    latent = gather(patchify(jnp.asarray(image, jnp.float32), SIZE), kept)
    return jnp.pad(latent, ((0, 0), (1, 0), (0, 0))), model_state


# Puts the kept patches back in their places, the parameter elsewhere, and adds another to all.
def decode(params, model_state, latent, place, key=None, train=False):
    absent = place.shape[1] + 1 - latent.shape[1]
    token = jnp.broadcast_to(params["token"], (len(latent), absent, VALUES))
    full = gather(jnp.concatenate([latent[:, 1:], token], axis=1), place)
    return full + params["added"][: len(full)], model_state


ENCODER = Net(lambda key, image, kept: ({}, {}), encode)
DECODER = Net(
    lambda key, latent, place: (
        {"token": jnp.zeros(VALUES), "added": jnp.zeros((5, PATCHES, VALUES))},
        {},
    ),
    decode,
)


def images(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 4, 6, 2)).astype(np.uint8)


def test_masks_divide_the_patches_into_kept_and_masked():
    kept, place, masked = map(np.asarray, random_masking(jax.random.key(0), 50, 12, 3))
    assert kept.shape == (50, 3) and place.shape == masked.shape == (50, 12)
    assert kept.dtype == place.dtype == np.int32 and masked.dtype == bool
    for row in range(50):
        hidden = np.flatnonzero(masked[row])
        assert sorted([*kept[row], *hidden]) == list(range(12))
        # The inverse permutation: patch kept[i] stands at i, and masked ones behind.
        np.testing.assert_array_equal(place[row, kept[row]], range(3))
        assert sorted(place[row]) == list(range(12))
    assert len({tuple(row) for row in kept}) > 40  # each image has a draw of its own


def test_tokens_that_were_shuffled_come_back_to_their_places():
    tokens = np.random.default_rng(0).normal(size=(5, 12, 4))
    kept, place, masked = random_masking(jax.random.key(0), 5, 12, 3)
    order = np.concatenate([kept, np.nonzero(masked)[1].reshape(5, 9)], axis=1)
    # Masked tokens are all alike; those that were kept come back to where they were.
    shuffled = np.take_along_axis(np.where(masked[..., None], 7, tokens), order[..., None], 1)
    back = np.take_along_axis(shuffled, np.asarray(place)[..., None], 1)
    np.testing.assert_array_equal(back, np.where(masked[..., None], 7, tokens))


def test_all_subsets_of_patches_are_equally_likely():
    kept, place, masked = random_masking(jax.random.key(3), 12000, 6, 2)
    code = np.sort(np.asarray(kept), axis=1) @ [6, 1]
    _, counts = np.unique(code, return_counts=True)
    assert len(counts) == 15
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # The hidden ones too are in random order: the decoder learns nothing from it.
    first = np.asarray(jnp.argsort(place, axis=1))[:, 2]
    assert scipy.stats.chisquare(np.bincount(first, minlength=6)).pvalue > 1e-3


def test_a_larger_batch_begins_with_the_masks_of_a_smaller():
    small, large = (random_masking(jax.random.key(0), n, 9, 4) for n in (3, 7))
    for few, many in zip(small, large, strict=True):
        np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize(("shape", "expected"), [((4, 2, 3), 0.9167), ((4, 4, 3), 0.9792)])
def test_predicting_zero_costs_n_minus_1_over_n(shape, expected):
    height, size, channels = shape
    image = np.random.default_rng(0).random((3, 2 * height, 8, channels), np.float32)
    target = patch_targets(image, size)
    zero, masked = jnp.zeros(target.shape), jnp.ones(target.shape[:2], bool)
    np.testing.assert_allclose(masked_error(zero, target, masked), expected, atol=2e-4)
    # numpy's and jax's default variance, which is biased, would make it 1.
    patches = patchify(image, size)
    biased = (patches - patches.mean(-1, keepdims=True)) / patches.std(-1, keepdims=True)
    np.testing.assert_allclose(masked_error(zero, biased, masked), 1, atol=1e-5)


def test_targets_by_hand():
    image = images(2)
    unit = image.astype(np.float64) / 255
    for row, column, patch in ((0, 0, 0), (2, 4, 5)):
        pixels = unit[1, row : row + 2, column : column + 2].ravel()
        expected = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(patch_targets(image, 2)[1, patch], expected, atol=1e-5)
        plain = patch_targets(image, 2, normalised=False)
        np.testing.assert_allclose(plain[1, patch], pixels, atol=1e-6)
    np.testing.assert_array_equal(
        patch_targets(np.float32(image / 255), 2), patch_targets(image, 2)
    )
    # A patch of one colour has no contrast to normalise: 1e-6 keeps it at 0.
    np.testing.assert_array_equal(patch_targets(np.full((1, 2, 2, 1), 7, np.uint8), 2), 0)


def test_only_masked_patches_count_and_get_a_gradient():
    prediction = jax.random.normal(jax.random.key(0), (2, 3, 4))
    target = jax.random.normal(jax.random.key(1), (2, 3, 4))
    masked = jnp.array([[True, False, True], [False, False, True]])
    error = np.square(np.asarray(prediction - target)).mean(-1)
    np.testing.assert_allclose(
        masked_error(prediction, target, masked),
        [(error[0, 0] + error[0, 2]) / 2, error[1, 2]],
        rtol=1e-6,
    )
    slope = jax.jit(jax.grad(lambda p: masked_error(p, target, masked).sum()))(prediction)
    assert (slope[~masked] == 0).all() and (slope[masked] != 0).all()
    half = masked_error(prediction.astype(jnp.bfloat16), target, masked)
    assert half.dtype == jnp.float32


def run(batch, encoder=ENCODER, decoder=DECODER, optimizer=SGD, **options):
    """The states before and after one update, and its metrics; compiled at one go."""
    options = {"patch_size": SIZE, "mask_ratio": 0.5, **options}
    learner = mae(encoder, decoder, optimizer, **options)

    @jax.jit
    def both(key, batch):
        start = learner.init(key, batch)
        return start, *learner.update(start, batch)

    return both(jax.random.key(0), batch)


def step(batch, **options):
    """The gradient of one update, and its metrics."""
    start, state, metrics = run(batch, **options)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new), start.params, state.params)
    return gradient["decoder"], derive(metrics)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_step_by_hand(normalised):
    image = images(5)
    gradient, metrics = step({"image": image}, normalised=normalised)
    hidden = (gradient["added"] != 0).any(-1)
    # Half of the patches, of each image others; those that are kept have a gradient of exactly 0.
    assert (hidden.sum(1) == 3).all() and len({tuple(row) for row in hidden}) > 1
    target = np.asarray(patch_targets(image, SIZE, normalised=normalised))
    # The parameters are 0, and so is the prediction for what is masked.
    losses = np.square(target).mean(-1)[hidden].reshape(5, 3).mean(1)
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    expected = np.where(hidden[..., None], -2 * target / VALUES / 3 / 5, 0)
    np.testing.assert_allclose(gradient["added"], expected, atol=1e-7)
    np.testing.assert_allclose(gradient["token"], expected.sum((0, 1)), atol=1e-6)


def test_masked_examples_neither_count_nor_get_a_gradient():
    image = images(5)
    mask = np.float32([1, 1, 1, 0, 0])
    spoilt = np.concatenate([image[:3], 0 * image[:2]])
    ours, metrics = step({"image": spoilt, "mask": mask})
    short, alone = step({"image": image[:3]})
    assert metrics["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    np.testing.assert_allclose(ours["added"], short["added"], atol=1e-7)


def test_the_encoder_is_given_the_kept_patches_and_nothing_of_the_others():
    def record(params, model_state, image, kept, key=None, train=False):
        latent, _ = encode(params, model_state, image, kept)
        return latent, (latent, kept) if train else model_state

    def seen(image):
        _, state, _ = run({"image": image}, encoder=Net(ENCODER.init, record))
        return map(np.asarray, state.model_state["encoder"])

    image = images(5)
    latent, kept = seen(image)
    patches = np.array(patchify(image, SIZE))
    assert latent.shape == (5, 1 + 3, VALUES)
    # As the batch has them: what normalises them belongs to the net.
    np.testing.assert_array_equal(latent[:, 1:], np.take_along_axis(patches, kept[..., None], 1))
    for row in range(5):
        hidden = sorted(set(range(PATCHES)) - set(kept[row]))
        patches[row, hidden] = 255 - patches[row, hidden]
    changed = np.asarray(unpatchify(jnp.asarray(patches), SIZE, (2, 3)))
    assert (changed != image).sum() > 5 * 3
    np.testing.assert_array_equal(next(seen(changed)), latent)


def test_masks_are_drawn_anew_at_each_update_and_from_the_key_in_evaluation():
    batch = {"image": images(5)}
    learner = mae(ENCODER, DECODER, optimizers.sgd(0.0), patch_size=SIZE, normalised=False)
    start = jax.jit(learner.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(repeated(learner, 3).update)(start, batch)
    assert len(set(np.asarray(metrics["loss"].value()).tolist())) == 3
    evaluate = jax.jit(learner.evaluate)
    first, again, other = (
        derive(evaluate(start, batch, jax.random.key(seed)))["loss"] for seed in (1, 1, 2)
    )
    assert first == again != other
    later = start.replace(step=start.step + 7)
    assert derive(evaluate(later, batch, jax.random.key(1)))["loss"] == first


def test_evaluation_is_the_same_loss_and_never_augments():
    def explode(key, image):
        raise AssertionError("evaluation must not augment")

    image = images(13)
    # Zeros whatever is masked, so that the loss is known without the masks.
    zeros = Net(
        lambda key, latent, place: ({}, {}),
        lambda params, state, latent, place, **_: (jnp.zeros((*place.shape, VALUES)), state),
    )
    learner = mae(ENCODER, zeros, SGD, patch_size=SIZE, augment=explode)
    state = jax.jit(learner.init)(jax.random.key(0), {"image": image})
    values = derive(evaluator(learner, {"image": image}, 5)(state, jax.random.key(1)))
    assert values["loss"] == pytest.approx(7 / 8, abs=1e-3)


def test_input_and_target_are_augmented_alike():
    image = images(5)

    def invert(key, image):
        assert image.dtype == jnp.uint8
        return 255 - image

    ours, metrics = step({"image": image}, augment=invert)
    theirs, expected = step({"image": 255 - image})
    assert metrics["loss"] == expected["loss"]
    np.testing.assert_array_equal(ours["added"], theirs["added"])


def test_both_nets_train_with_keys_of_their_own_and_keep_their_statistics():
    modes = []

    def recording(net):
        def apply(params, model_state, first, second, key=None, train=False):
            modes.append(train)
            output, _ = net.apply(params, model_state, first, second)
            return output, jax.random.key_data(key) if train else model_state

        return Net(
            lambda key, *inputs: (net.init(key, *inputs)[0], jnp.zeros(2, jnp.uint32)), apply
        )

    nets, batch = (recording(ENCODER), recording(DECODER)), {"image": images(5)}
    start, state, _ = run(batch, *nets)
    assert modes[-2:] == [True, True]
    assert (start.model_state["encoder"] == 0).all()
    assert (state.model_state["encoder"] != state.model_state["decoder"]).any()
    learner = mae(*nets, SGD, patch_size=SIZE)
    jax.eval_shape(learner.evaluate, state, batch, jax.random.key(1))
    assert modes[-2:] == [False, False]


@pytest.mark.parametrize("normalised", [True, False])
def test_pictures(normalised):
    image = images(3)
    unit = image.astype(np.float32) / 255
    # A decoder that knows the answer, and is wrong by .5 in the first image.
    truth = patch_targets(image, SIZE, normalised=normalised)
    off = jnp.array([0.5, 0, 0])[:, None, None]
    knowing = Net(
        lambda key, latent, place: ({}, {}),
        lambda params, state, latent, place, **_: (truth + off, state),
    )
    key, nets = jax.random.key(0), {"encoder": {}, "decoder": {}}
    pictures = reconstruct(
        *(ENCODER, knowing, nets, nets, key, image),
        patch_size=SIZE,
        mask_ratio=0.5,
        normalised=normalised,
    )
    np.testing.assert_array_equal(pictures.original, unit)
    np.testing.assert_allclose(pictures.filled[1:], unit[1:], atol=1e-6)
    patches = np.asarray(patchify(unit, SIZE))
    grey = np.asarray(patchify(pictures.masked, SIZE))
    hidden = (grey == 0.5).all(-1)
    assert (hidden.sum(1) == 3).all()
    np.testing.assert_array_equal(grey[~hidden], patches[~hidden])
    filled = np.asarray(patchify(pictures.filled, SIZE))[0]
    np.testing.assert_array_equal(filled[~hidden[0]], patches[0, ~hidden[0]])
    contrast = patches[0].std(-1, ddof=1, keepdims=True) if normalised else 1
    expected = np.clip(patches[0] + 0.5 * contrast, 0, 1)
    np.testing.assert_allclose(filled[hidden[0]], expected[hidden[0]], atol=1e-5)


# Forgets about the patches that were masked.
LATENT = Net(lambda key, *inputs: ({}, {}), lambda params, state, latent, *_, **__: (latent, state))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mae(ENCODER, DECODER, SGD, patch_size=2, mask_ratio=0.0), "mask_ratio=0.0"),
        (lambda: mae(ENCODER, DECODER, SGD, patch_size=2, mask_ratio=1.0), "mask_ratio=1.0"),
        (lambda: run({"image": images(2)}, mask_ratio=0.1), "masks 0 of 6 patches"),
        (lambda: run({"image": images(2)}, patch_size=3), "4x6 cannot be cut into patches of 3x3"),
        (lambda: run({"image": images(2)[0]}), "expected [B, H, W, C]"),
        (lambda: run({"image": images(2)}, decoder=LATENT), "(2, 4, 8): expected (2, 6, 8)"),
        (lambda: patch_targets(images(2)[..., :1], 1), "patches of one value"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
