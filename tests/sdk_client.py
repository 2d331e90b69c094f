"""Ask a server through whichever openai SDK this Python has, and print what came back.

Run by test_server_clients.py with this Python and with those in OPENAI_SDK_PYTHONS; needs the SDK alone.
"""

import asyncio
import sys

import openai

BASE_URL, KEY, MODEL = sys.argv[1:]
TEXTS = ["first passage", "second passage", "third"]


def show(answer) -> None:
    for row in answer.data:
        print(*row.embedding)


def refused(client, **request) -> str:
    try:
        client.embeddings.create(**request)
    except openai.APIStatusError as error:
        return type(error).__name__
    return "nothing"


async def ask_async() -> None:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY) as client:
        show(await client.embeddings.create(model=MODEL, input=TEXTS))
        show(await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float"))


with openai.OpenAI(base_url=BASE_URL, api_key=KEY) as client:
    first = client.embeddings.create(model=MODEL, input=TEXTS)
    print(openai.__version__)
    print(first.usage.prompt_tokens)
    with openai.OpenAI(base_url=BASE_URL, api_key="wrong") as stranger:
        print(
            refused(stranger, model=MODEL, input="a"),
            refused(client, model="text-embedding-3-small", input="a"),
            refused(client, model=MODEL, input=[[1, 2]]),
        )
    show(client.embeddings.create(model=MODEL, input=TEXTS[0], extra_body={"input_type": "query"}))
    show(first)
    show(client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float"))
asyncio.run(ask_async())
