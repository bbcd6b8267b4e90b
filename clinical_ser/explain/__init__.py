"""What moved a score, how surely, when, and in words a clinician reads."""

from clinical_ser.explain.effects import Effects, Explainer
from clinical_ser.explain.explaining import explain
from clinical_ser.explain.explanation import Explanation
from clinical_ser.explain.shap_objects import families_as_shap, features_as_shap

__all__ = ["Effects", "Explainer", "Explanation", "explain", "families_as_shap", "features_as_shap"]
