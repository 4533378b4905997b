"""Audit a classifier of your own: how easily are its explanations manipulated, which are safest, what would help?

model      a classifier out of your code (functions) or a folder of transformers (folders), with a checkpoint that is
           read as data (weights)
images     your pictures
measured   one map under attack, beside noise and other images
batches    all maps on all pictures, resumable
certificate what no attack can break, where that is known
examples   networks with pictures to try it on
retraining copies that are trained on, audited as the network was
advice     what follows, each sentence with its number
trial      what following it brings on pictures that an audit did not see
"""

from attrobust.audit.advice import Advice, advise
from attrobust.audit.batches import Audited, audited, fitting, leaders_of, remembered, rows_of_attention
from attrobust.audit.certificate import certified
from attrobust.audit.examples import EXAMPLES, example
from attrobust.audit.images import Pictures, load_images
from attrobust.audit.maps import NAMES, feature_maps, maps_of
from attrobust.audit.measured import MEASURES, Attacked, attacked, attended, turns, worth
from attrobust.audit.model import Classifier, check_classes, load_model
from attrobust.audit.opened import Opened, opened
from attrobust.audit.passes import counted
from attrobust.audit.report import panels, summary, write
from attrobust.audit.retraining import WAYS, Retrained, after_training, retrain, retrained, ways_compared
from attrobust.audit.trial import ABSTAINED, followed

__all__ = [
    "ABSTAINED", "EXAMPLES", "MEASURES", "NAMES", "WAYS", "Advice", "Attacked", "Audited", "Classifier", "Opened",
    "Pictures", "Retrained", "advise", "after_training", "attacked", "attended", "audited", "certified",
    "check_classes", "counted", "example", "feature_maps", "fitting", "followed", "leaders_of", "load_images",
    "load_model", "maps_of", "opened", "panels", "remembered", "retrain", "retrained", "rows_of_attention",
    "summary", "turns", "ways_compared", "worth", "write",
]  # fmt: skip
