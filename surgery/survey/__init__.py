"""Understanding a network without touching it: graph, shapes, blocks, stages, channel spaces."""

from chansurg.surgery.survey.blocks import Block, Stage
from chansurg.surgery.survey.channels import ChannelSpaces, Member, Space
from chansurg.surgery.survey.regions import Call, Region
from chansurg.surgery.survey.survey import Survey, survey

__all__ = ["Block", "Call", "ChannelSpaces", "Member", "Region", "Space", "Stage", "Survey", "survey"]
