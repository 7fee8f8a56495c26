"""PickScore v1: CLIP ViT-H/14 trained on Pick-a-Pic preferences.

Source: Kirstain et al., arXiv:2305.01569, eq. 1; weights yuvalkirstain/PickScore_v1.
"""

from reward_services.models.clip import PUBLISHED_TOKENIZER, unchanged
from reward_services.models.clip_directory import ClipDirectoryReward
from reward_services.preprocess import pickscore_preprocess


class PickScore(ClipDirectoryReward):
    """`exp(logit_scale) * cos(image, text)`; published weights give 18 to 24."""

    rule = pickscore_preprocess
    clean = unchanged
    scaled = True
    published_tokenizer = PUBLISHED_TOKENIZER
