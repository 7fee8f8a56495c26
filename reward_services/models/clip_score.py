"""CLIP score: the cosine of a picture and its prompt by OpenAI's CLIP.

Source: Hessel et al., arXiv:2104.08718, without their factor 2.5 and their clamp at 0, which would stop the gradient.
"""

from reward_services.models.clip import open_clip_text
from reward_services.models.clip_directory import ClipDirectoryReward
from reward_services.preprocess import imagereward_preprocess


class ClipScore(ClipDirectoryReward):
    """`cos(image, text)`; published weights give .2 to .35; tables show 100 times that."""

    rule = imagereward_preprocess  # that of OpenAI's clip package, which ImageReward took over
    clean = open_clip_text  # OpenAI's tokenizer cleans prompts as open_clip's, which was copied from it
    published_tokenizer = "openai/clip-vit-large-patch14"
