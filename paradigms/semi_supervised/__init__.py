"""Semi-supervised learning: a few labels, and many examples without."""

from paradigms.semi_supervised.consistency import consistency, mean_teacher, pi_model
from paradigms.semi_supervised.fixmatch import class_thresholds, fixmatch, flexmatch
from paradigms.semi_supervised.mixmatch import mixmatch, sharpen
from paradigms.semi_supervised.pseudo_label import pseudo_label
from paradigms.semi_supervised.streams import derive_pseudo_labels, entropy
from paradigms.semi_supervised.vat import vat, virtual_adversarial_loss

__all__ = [
    "class_thresholds",
    "consistency",
    "derive_pseudo_labels",
    "entropy",
    "fixmatch",
    "flexmatch",
    "mean_teacher",
    "mixmatch",
    "pi_model",
    "pseudo_label",
    "sharpen",
    "vat",
    "virtual_adversarial_loss",
]
