"""The networks themselves, registered with the Auto classes of transformers when this is imported."""

from transformers.models.auto.modeling_auto import AutoModel, AutoModelForImageClassification

from .cifar_deep_resnet import CifarDeepResNetForImageClassification, CifarDeepResNetModel
from .cifar_mobilenet_v2 import CifarMobileNetV2ForImageClassification, CifarMobileNetV2Model
from .cifar_resnet import CifarResNetForImageClassification, CifarResNetModel
from .cifar_shufflenet_v1 import CifarShuffleNetV1ForImageClassification, CifarShuffleNetV1Model
from .cifar_shufflenet_v2 import CifarShuffleNetV2ForImageClassification, CifarShuffleNetV2Model
from .cifar_vgg import CifarVGGForImageClassification, CifarVGGModel
from .cifar_wrn import CifarWRNForImageClassification, CifarWRNModel

NETWORKS = (
    (CifarResNetModel, CifarResNetForImageClassification),
    (CifarDeepResNetModel, CifarDeepResNetForImageClassification),
    (CifarWRNModel, CifarWRNForImageClassification),
    (CifarVGGModel, CifarVGGForImageClassification),
    (CifarMobileNetV2Model, CifarMobileNetV2ForImageClassification),
    (CifarShuffleNetV1Model, CifarShuffleNetV1ForImageClassification),
    (CifarShuffleNetV2Model, CifarShuffleNetV2ForImageClassification),
)

for _backbone, _classifier in NETWORKS:
    AutoModel.register(_backbone.config_class, _backbone, exist_ok=True)
    AutoModelForImageClassification.register(_classifier.config_class, _classifier, exist_ok=True)
