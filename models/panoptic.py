"""The classes of the data sets of panoptic segmentation: names in the order of the usual class numbers, and which are things."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torchvision.datasets import Cityscapes
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

# Stuff of COCO 2017, whose things stand before it.
_COCO_STUFF = """
banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit,
gravel, house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road,
roof, sand, sea, shelf, snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood,
water-other, window-blind, window-other, tree-merged, fence-merged, ceiling-merged,
sky-other-merged, cabinet-merged, table-merged, floor-other-merged, pavement-merged,
mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged,
building-other-merged, rock-merged, wall-other-merged, rug-merged
"""

# The 150 classes of ADE20K's scene parsing, stuff marked by a star; names hold commas.
_ADE20K = """
wall*; building*; sky*; floor*; tree*; ceiling*; road, route*; bed; window; grass*; cabinet;
sidewalk, pavement*; person; earth, ground*; door; table; mountain, mount*; plant*; curtain;
chair; car; water*; painting, picture; sofa; shelf; house*; sea*; mirror; rug*; field*; armchair;
seat; fence; desk; rock, stone*; wardrobe, closet, press; lamp; tub; rail; cushion; base,
pedestal, stand*; box; column, pillar; signboard, sign; chest of drawers, chest, bureau, dresser;
counter; sand*; sink; skyscraper*; fireplace; refrigerator, icebox; grandstand, covered stand*;
path*; stairs; runway*; case, display case, showcase, vitrine; pool table, billiard table, snooker
table; pillow; screen door, screen; stairway, staircase*; river*; bridge, span*; bookcase; blind,
screen*; coffee table; toilet, can, commode, crapper, pot, potty, stool, throne; flower; book;
hill*; bench; countertop; stove; palm, palm tree; kitchen island; computer; swivel chair; boat;
bar*; arcade machine; hovel, hut, hutch, shack, shanty*; bus; towel; light; truck; tower*;
chandelier; awning, sunshade, sunblind; street lamp; booth; tv; plane; dirt track*; clothes; pole;
land, ground, soil*; bannister, banister, balustrade, balusters, handrail; escalator, moving
staircase, moving stairway*; ottoman, pouf, pouffe, puff, hassock; bottle; buffet, counter,
sideboard*; poster, posting, placard, notice, bill, card*; stage*; van; ship; fountain; conveyer
belt, conveyor belt, conveyer, conveyor, transporter*; canopy*; washer, automatic washer, washing
machine; plaything, toy; pool*; stool; barrel, cask; basket, handbasket; falls*; tent*; bag;
minibike, motorbike; cradle*; oven; ball; food, solid food; step, stair; tank, storage tank*;
trade name; microwave; pot; animal; bicycle; lake*; dishwasher; screen; blanket, cover*;
sculpture; hood, exhaust hood; sconce; vase; traffic light; tray; trash can; fan; pier*; crt
screen*; plate; monitor; bulletin board; shower*; radiator; glass, drinking glass; clock; flag
"""


@dataclass(frozen=True)
class Classes:
    """Labels by class number, and the numbers of the things: what can be counted."""

    labels: tuple[str, ...]
    things: tuple[int, ...]


@cache
def coco() -> Classes:
    """Return COCO 2017's 80 things and 53 kinds of stuff."""
    things = [
        name
        for name in MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
        if name not in ("__background__", "N/A")
    ]
    return Classes((*things, *_names(_COCO_STUFF, ",")), tuple(range(len(things))))


@cache
def cityscapes() -> Classes:
    """Return the 19 classes of Cityscapes that are evaluated."""
    known = [kind for kind in Cityscapes.classes if not kind.ignore_in_eval and kind.train_id >= 0]
    kinds = sorted(known, key=lambda kind: kind.train_id)
    return Classes(
        tuple(kind.name for kind in kinds),
        tuple(kind.train_id for kind in kinds if kind.has_instances),
    )


@cache
def ade20k() -> Classes:
    """Return ADE20K's 150 classes, 100 of which are things."""
    labels = _names(_ADE20K, ";")
    return Classes(
        tuple(label.rstrip("*") for label in labels),
        tuple(index for index, label in enumerate(labels) if not label.endswith("*")),
    )


def _names(text: str, separator: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(separator))
