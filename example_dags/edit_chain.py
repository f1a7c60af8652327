"""A chain of edits: each task edits the image of the one before. The output of an operator is a manifest, which is a
valid input.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

with DAG("geminiimg_edit_chain", tags=["geminiimg"], default_args={"deferrable": True}):
    room = GeminiImageGenerateOperator(task_id="room", prompt="An empty room with a large window")
    sofa = GeminiImageEditOperator(task_id="sofa", prompt="Put a green sofa under the window", image=room.output)
    GeminiImageEditOperator(
        task_id="evening",
        prompt="Make it evening; keep the room as it was in the second image",
        image=sofa.output,
        reference_images=[room.output],
    )
