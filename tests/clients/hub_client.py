"""`huggingface_hub.InferenceClient` against an engine: `hub_client.py URL KEY < CALLS`.

CALLS is a JSON list of [method, keyword arguments]; what each returns or raises goes to standard output as JSON.
"""

import asyncio
import dataclasses
import json
import sys

import huggingface_hub
import numpy


def plain(value):
    if isinstance(value, numpy.ndarray):
        return {"dtype": str(value.dtype), "rows": value.tolist()}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


async def main():
    url, key = sys.argv[1:]
    client = huggingface_hub.InferenceClient(url, token=key)
    awaited = huggingface_hub.AsyncInferenceClient(url, token=key)
    answers = []
    for method, arguments in json.load(sys.stdin):
        try:
            answer = plain(getattr(client, method)(**arguments))
            assert plain(await getattr(awaited, method)(**arguments)) == answer
        except huggingface_hub.errors.HfHubHTTPError as error:
            answer = {"status": error.response.status_code, "message": str(error)}
        answers.append(answer)
    await awaited.close()
    json.dump({"version": huggingface_hub.__version__, "answers": answers}, sys.stdout)


asyncio.run(main())
