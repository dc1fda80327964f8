"""SimCLR learns CIFAR-10 without a label, then FixMatch goes on from its features with 250.

Two paradigms on one train state: the backbone that SimCLR trains is where the net of FixMatch
starts, whose head is new. Pretraining is as in `simclr_cifar10`, once for all draws of the labels,
and the twin is the same net on the same labels alone, from scratch. `fixmatch_cifar10` has the same
budget of labels without pretraining, by another net at full size. There is no published number for
this pair; the aim is that of FixMatch. For two CPU cores there is `--size small`, with
`--steps 3000 --pretrain-steps 3510`.

  python -m experiments.semi_supervised.simclr_then_fixmatch_cifar10        an accelerator
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

import nets
from experiments import cli, few_labels, images, joint_embedding, training
from experiments.prediction import load_weights
from nets.net import Net
from paradigms.core.state import TrainState
from paradigms.self_supervised import simclr
from paradigms.semi_supervised import fixmatch
from paradigms.supervised import classifier

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.88,
    "source": "aim: that of FixMatch with 250 labels in 20 minutes",
    "variants": {
        "small": {
            "metric": "gain/errors",
            "value": 0.25,
            "source": "aim: a quarter of its twin's errors",
        },
    },
}


@dataclass(frozen=True)
class Config(few_labels.Cifar):
    """Options of this experiment."""

    pretrain_steps: int = 200 * 351
    """Updates without labels; 200 epochs."""
    threshold: float = 0.95

    def rehearsal(self) -> "Config":
        """As the others, with pretraining as short."""
        return replace(super().rehearsal(), pretrain_steps=120)


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`, as a backbone and a head."""
    backbone = joint_embedding.cifar_backbone(_pretraining(config))
    return nets.chain(backbone=backbone, head=nets.mlp((), 10))


def _pretraining(config: Config) -> joint_embedding.Cifar:
    return joint_embedding.Cifar(
        seeds=(0,),
        steps=config.pretrain_steps,
        evaluate_every=max(1, config.pretrain_steps // 10),
        size=config.size,
        batch_size=32 if config.smoke else 128,
        validation=config.validation,
        smoke=config.smoke,
        run_dir=config.run_dir,
        data_dir=config.data_dir,
        mesh=config.mesh,
        precision=config.precision,
        accumulate=config.accumulate,
        debug=config.debug,
    )


def main(config: Config) -> None:
    """Pretrains once, then learns from every draw of the labels."""
    # All parts go into one directory, whatever their own options.
    config = replace(config, run_dir=training.directory_of(main, config))
    with training.open_run(main, config) as run:
        if run.finished:
            return
    pretraining = _pretraining(config)
    backbone = joint_embedding.cifar_backbone(pretraining)
    learner = simclr(
        backbone,
        nets.projector((512,), 128),
        joint_embedding.sgd(pretraining),
        joint_embedding.cifar_views(pretraining),
    )
    joint_embedding.train_cifar(main, pretraining, learner, backbone, into="simclr")
    weights = load_weights(run.directory / "simclr", backbone)

    def adopt(state: TrainState) -> TrainState:
        """Gives every run the pretrained backbone, and its average too."""
        runs = len(config.seeds)
        given = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * runs), weights)

        def changed(tree: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
            return {kind: {**tree[kind], "backbone": given[kind]} for kind in given}

        live = changed({"params": state.params, "model_state": state.model_state})
        # Copies, because one buffer under two names cannot be donated.
        average = jax.tree.map(jnp.copy, changed(state.target["average"]))
        return state.replace(**live, target={**state.target, "average": average})

    net, optimizer = network(config), few_labels.cifar_optimizer(config)
    few_labels.train(
        main,
        config,
        net,
        few_labels.ema(
            fixmatch(
                net,
                optimizer,
                few_labels.weak(),
                few_labels.strong(),
                threshold=config.threshold,
            ),
            config.decay,
        ),
        few_labels.ema(classifier(net, optimizer, augment=few_labels.weak()), config.decay),
        few_labels.cifar(config),
        images.CIFAR10_CLASSES,
        weights=few_labels.ema_weights,
        start=adopt,
    )


if __name__ == "__main__":
    cli.run(main, Config)
