"""A method of one's own as tests add it: the template, with a pretraining that draws a goal for each tile."""
import torch
from torch import nn

from models.template import Mine


class MinePretrained(Mine):
    """Its vector learns to be the goal, which is noise."""
    terms = ("goal",)

    def build(self, num_classes, width):
        super().build(num_classes or 1, width)
        self.head = self.head if num_classes else nn.Identity()

    def draw_masks(self, batch, generator=None):
        return {"goal": torch.randn(len(batch["name"]), 1, generator=generator)}

    def pretrain_loss(self, batch, masks):
        x = self.vector(batch)
        loss = (x - masks["goal"].to(x.device)).square().mean()
        return loss, {"goal": loss}
