"""Self-supervised learning: the data sets its own questions, and representations answer them."""

from paradigms.self_supervised.bert import bert, masked_tokens
from paradigms.self_supervised.byol import byol, regression_loss, rising_decay
from paradigms.self_supervised.evaluation import (
    Probe,
    knn,
    linear_probe,
    logistic_probe,
    probed,
)
from paradigms.self_supervised.generation import generate, top_k_logits, top_p_logits
from paradigms.self_supervised.gpt import derive_language, gpt
from paradigms.self_supervised.joint_embedding import (
    COLLAPSED,
    diagnostics,
    effective_rank,
    siamese,
    two_views,
)
from paradigms.self_supervised.mae import (
    mae,
    masked_error,
    patch_targets,
    random_masking,
    reconstruct,
)
from paradigms.self_supervised.moco import info_nce, moco
from paradigms.self_supervised.simclr import nt_xent, simclr
from paradigms.self_supervised.vicreg import VICReg, vicreg, vicreg_terms

__all__ = [
    "COLLAPSED",
    "Probe",
    "VICReg",
    "bert",
    "byol",
    "derive_language",
    "diagnostics",
    "effective_rank",
    "generate",
    "gpt",
    "info_nce",
    "knn",
    "linear_probe",
    "logistic_probe",
    "mae",
    "masked_error",
    "masked_tokens",
    "moco",
    "nt_xent",
    "patch_targets",
    "probed",
    "random_masking",
    "reconstruct",
    "regression_loss",
    "rising_decay",
    "siamese",
    "simclr",
    "top_k_logits",
    "top_p_logits",
    "two_views",
    "vicreg",
    "vicreg_terms",
]
