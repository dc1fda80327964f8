"""Nets for reinforcement learning: actors, critics, Q networks and torsos for images.

The heads take `x[B, ...]` and flatten it, so each stands alone on vectors, or after a torso:
`chain(torso=nature_cnn(), head=q_network((), 6))`. Integer and bool inputs count as the numbers
they are, in float32: a net for bytes divides by 255 in `preprocess(net, lambda x: x / 255)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nets.dense import Dense
from nets.layers import Activation, activation_function
from nets.net import Net, from_linen

Array = jax.Array

# Uniform within 1/sqrt(fan-in), as in DDPG (Lillicrap et al. 2016, section 7) and, by the default
# of their library, in the authors' code of DQN and TD3. Biases start at zero here.
FAN_IN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ActorCritic(nn.Module):
    """Two perceptrons, or two outputs of one: a policy and a value."""

    features: Sequence[int]
    num_outputs: int
    activation: Activation = "tanh"
    shared: bool = False
    continuous: bool = False

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False
    ) -> tuple[Array, Array] | tuple[tuple[Array, Array], Array]:
        """Maps `x[B, ...]` to `(logits, value)` or `((mean, log_std), value)`."""
        x = _flat(x)

        def hidden(name: str) -> Array:
            init = nn.initializers.orthogonal(math.sqrt(2))
            return Hidden(self.features, self.activation, init, name=name)(x)

        actor = hidden("hidden" if self.shared else "hidden_policy")
        critic = actor if self.shared else hidden("hidden_value")
        head = nn.initializers.orthogonal(0.01)
        output = Dense(self.num_outputs, kernel_init=head, name="policy")(actor)
        value = Dense(1, kernel_init=nn.initializers.orthogonal(1.0), name="value")(critic)[:, 0]
        if not self.continuous:
            return output, value
        log_std = self.param("log_std", nn.initializers.zeros, (self.num_outputs,))
        return (output, jnp.broadcast_to(log_std, output.shape)), value


class QNetwork(nn.Module):
    """A perceptron with one output, or one distribution, per action."""

    features: Sequence[int]
    num_actions: int
    duelling: bool = False
    atoms: int | None = None
    noisy: bool = False
    sigma: float = 0.5
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps `x[B, ...]` to `[B, A]` or `[B, A, atoms]`."""
        act, atoms = activation_function(self.activation), self.atoms or 1

        def dense(x: Array, width: int, name: str) -> Array:
            if self.noisy:
                return NoisyDense(width, self.sigma, name=name)(x, train)
            return Dense(width, kernel_init=FAN_IN_UNIFORM, name=name)(x)

        def stream(x: Array, hidden: Sequence[int], rows: int, name: str) -> Array:
            for width in hidden:
                x = act(dense(x, width, f"hidden_{name}"))
            return dense(x, rows * atoms, name).reshape(-1, rows, atoms)

        own = self.features[-1:] if self.duelling else ()
        x = _flat(x)
        for layer, width in enumerate(self.features[: len(self.features) - len(own)]):
            x = act(dense(x, width, f"hidden_{layer}"))
        if self.duelling:
            advantage = stream(x, own, self.num_actions, "advantage")
            value = stream(x, own, 1, "value")
            q = value + advantage - advantage.mean(1, keepdims=True)
        else:
            q = stream(x, own, self.num_actions, "q")
        return q if self.atoms else q[..., 0]


class NoisyDense(nn.Module):
    """A dense layer with learned noise on its weights (Fortunato et al. 2018, section 3).

    The kernel is `mu + sigma * f(e_in) f(e_out)^T` and the bias `mu + sigma * f(e_out)`, with e
    standard normal and `f(e) = sign(e) sqrt(|e|)` (equations 10 and 11). At first mu is
    uniform within 1/sqrt(p) and every sigma is `sigma`/sqrt(p), where p is the number of inputs.
    """

    features: int
    sigma: float = 0.5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `x[B, p]` to `[B, features]`; one draw for the whole batch in training, else mu."""
        p = x.shape[-1]
        sigma_init = nn.initializers.constant(self.sigma / math.sqrt(p))

        def bias_init(key: Array, shape: tuple[int, ...]) -> Array:
            bound = 1 / math.sqrt(p)
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", FAN_IN_UNIFORM, (p, self.features))
        bias = self.param("bias", bias_init, (self.features,))
        kernel_sigma = self.param("kernel_sigma", sigma_init, kernel.shape)
        bias_sigma = self.param("bias_sigma", sigma_init, bias.shape)
        if train:
            noise = jax.random.normal(self.make_rng("dropout"), (p + self.features,), kernel.dtype)
            noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
            kernel += kernel_sigma * jnp.outer(noise[:p], noise[p:])
            bias += bias_sigma * noise[p:]
        return x @ kernel + bias


class SquashedGaussian(nn.Module):
    """A perceptron whose outputs are the mean and log standard deviation below a tanh."""

    features: Sequence[int]
    num_actions: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Maps `x[B, ...]` to `(mean[B, D], log_std[B, D])`."""
        x = Hidden(self.features, "relu", FAN_IN_UNIFORM, name="hidden")(_flat(x))
        mean = Dense(self.num_actions, kernel_init=FAN_IN_UNIFORM, name="mean")(x)
        raw = Dense(self.num_actions, kernel_init=FAN_IN_UNIFORM, name="log_std")(x)
        # Clipping would leave no gradient to come back by.
        return mean, -5 + 3.5 * (nn.tanh(raw) + 1)


class DeterministicActor(nn.Module):
    """A perceptron with tanh outputs."""

    features: Sequence[int]
    num_actions: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps `x[B, ...]` to `[B, D]`."""
        x = Hidden(self.features, "relu", FAN_IN_UNIFORM, name="hidden")(_flat(x))
        return nn.tanh(Dense(self.num_actions, kernel_init=FAN_IN_UNIFORM, name="action")(x))


class Critic(nn.Module):
    """A perceptron over observation and action."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, obs: Array, action: Array, train: bool = False) -> Array:
        """Maps `obs[B, ...]` and `action[B, D]` to `[B]`."""
        x = jnp.concatenate([_flat(obs), _flat(action)], -1)
        x = Hidden(self.features, "relu", FAN_IN_UNIFORM, name="hidden")(x)
        return Dense(1, kernel_init=FAN_IN_UNIFORM, name="value")(x)[:, 0]


class Torso(nn.Module):
    """Convolutions without padding and a dense layer, each followed by relu."""

    convolutions: Sequence[tuple[int, int, int]]
    dense: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images `x[B, H, W, C]` to `[B, dense]`."""
        smallest = 1
        for _, size, stride in reversed(self.convolutions):
            smallest = (smallest - 1) * stride + size
        if x.ndim != 4 or min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"images of shape {x.shape} do not fit the convolutions: "
                f"expected [B, H, W, C] with H and W at least {smallest}"
            )
        init = nn.initializers.orthogonal(math.sqrt(2))
        for width, size, stride in self.convolutions:
            x = nn.relu(
                nn.Conv(
                    width,
                    (size, size),
                    stride,
                    padding="VALID",
                    kernel_init=init,
                    conv_general_dilated=_convolve,
                )(x)
            )
        return nn.relu(Dense(self.dense, kernel_init=init)(_flat(x)))


class Hidden(nn.Module):
    """Dense layers, each followed by the activation."""

    features: Sequence[int]
    activation: Activation
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x[B, p]` to `[B, features[-1]]`."""
        for width in self.features:
            x = Dense(width, kernel_init=self.kernel_init)(x)
            x = activation_function(self.activation)(x)
        return x


def actor_critic(
    features: Sequence[int],
    num_outputs: int,
    *,
    activation: Activation = "tanh",
    shared: bool = False,
    continuous: bool = False,
) -> Net:
    """Policy and value, for PPO: `x[B, ...]` gives `(logits[B, A], value[B])`.

    Orthogonal kernels with gain sqrt(2) in the hidden layers, 0.01 for the policy and 1 for the
    value, and zero biases (Huang et al. 2022, "The 37 Implementation Details of Proximal Policy
    Optimization", detail 2): the first policy is all but uniform.

    Args:
      features: widths of the hidden layers; empty after a torso.
      num_outputs: number of actions A, or of action coordinates D.
      activation: by name or as a function.
      shared: one set of hidden layers for both outputs, in place of one each.
      continuous: the output is `((mean[B, D], log_std[B, D]), value[B])`. log_std is a parameter
        that does not depend on the state and starts at 0 (continuous details 2 and 3).

    Raises:
      ValueError: unknown activation or a width below 1.
    """
    _check("actor_critic", features, num_outputs, activation)
    return from_linen(ActorCritic(tuple(features), num_outputs, activation, shared, continuous))


def q_network(
    features: Sequence[int],
    num_actions: int,
    *,
    duelling: bool = False,
    atoms: int | None = None,
    noisy: bool = False,
    sigma: float = 0.5,
    activation: Activation = "relu",
) -> Net:
    """Action values, for DQN and its kin: `x[B, ...]` gives `q[B, A]`, or logits `[B, A, atoms]`.

    Args:
      features: widths of the hidden layers; empty gives a linear head.
      num_actions: number of actions A.
      duelling: `Q = V + advantage - mean of advantages` over actions, for each atom (Wang et al.
        2016, equation 9). Value and advantages have a copy each of the last hidden layer.
      atoms: number of atoms of a categorical distribution over returns (Bellemare et al. 2017);
        the output is logits over the atoms, the last axis.
      noisy: every layer is a `NoisyDense`. With `train=True` one draw of the noise, from `key`,
        serves the whole batch; without, the mean weights act.
      sigma: how large that noise is at first, in units of `1/sqrt(inputs)`.
      activation: by name or as a function.

    Raises:
      ValueError: unknown activation, a width below 1, fewer than 2 atoms or a negative sigma.
    """
    _check("q_network", features, num_actions, activation)
    if atoms is not None and atoms < 2:
        raise ValueError(
            f"q_network: {atoms} atoms make no distribution: choose at least 2, or None for values"
        )
    if sigma < 0:
        raise ValueError(f"q_network: sigma={sigma} is the size of noise: expected at least 0")
    return from_linen(
        QNetwork(tuple(features), num_actions, duelling, atoms, noisy, sigma, activation)
    )


def squashed_gaussian(features: Sequence[int], num_actions: int) -> Net:
    """The actor of SAC: `x[B, ...]` gives `(mean[B, D], log_std[B, D])`, both before the tanh.

    log_std is in [-5, 2] as `-5 + 3.5 * (tanh(raw) + 1)`, and starts near -1.5. Hidden layers are
    followed by relu.

    Args:
      features: widths of the hidden layers.
      num_actions: number of action coordinates D.

    Raises:
      ValueError: a width below 1.
    """
    _check("squashed_gaussian", features, num_actions)
    return from_linen(SquashedGaussian(tuple(features), num_actions))


def deterministic_actor(features: Sequence[int], num_actions: int) -> Net:
    """The actor of DDPG and TD3: `x[B, ...]` gives `action[B, D]` in (-1, 1), by tanh.

    Args:
      features: widths of the hidden layers, which are followed by relu.
      num_actions: number of action coordinates D.

    Raises:
      ValueError: a width below 1.
    """
    _check("deterministic_actor", features, num_actions)
    return from_linen(DeterministicActor(tuple(features), num_actions))


def critic(features: Sequence[int]) -> Net:
    """The critic of DDPG, TD3 and SAC: `obs[B, ...]` and `action[B, D]` give `q[B]`.

    Args:
      features: widths of the hidden layers, which are followed by relu; the action enters at the
        first, beside the observation.

    Raises:
      ValueError: a width below 1.
    """
    _check("critic", features, 1)
    return from_linen(Critic(tuple(features)))


def minatar_cnn() -> Net:
    """The torso for MinAtar (Young & Tian 2019): `x[B, 10, 10, C]` gives `[B, 128]`.

    16 filters of 3x3, stride 1, then 128 dense units; relu after both. Kernels are orthogonal with
    gain sqrt(2), biases zero.
    """
    return from_linen(Torso(((16, 3, 1),), 128))


def nature_cnn() -> Net:
    """The torso for Atari (Mnih et al. 2015, Methods): `x[B, 84, 84, 4]` gives `[B, 512]`.

    32 filters of 8x8 with stride 4, 64 of 4x4 with stride 2, 64 of 3x3 with stride 1, then 512
    dense units; relu after each. Kernels are orthogonal with gain sqrt(2), biases zero. Bytes are
    cast but not divided: write `preprocess(net, lambda x: x / 255)` in the experiment.
    """
    return from_linen(Torso(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: str, **options: Any
) -> Array:
    """`lax.conv_general_dilated` without padding or dilation, as one matrix product on a CPU.

    In a loop, where agents live, XLA's CPU backend takes the gradient of a convolution 28 times
    slower for MinAtar (20 updates of 128 images: 454 ms against 16) and 8 times for Atari; outside
    of one the product takes 1.6 times as long.
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    (height, width), (down, right) = kernel.shape[:2], strides
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // right + 1
    patches = [
        x[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _check(
    name: str, features: Sequence[int], num_outputs: int, activation: Activation = "relu"
) -> None:
    activation_function(activation)
    if min((*features, num_outputs)) < 1:
        raise ValueError(f"{name}: widths {(*features, num_outputs)} must all be at least 1")
