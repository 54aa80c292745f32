"""The floor of the framework: a FastAPI route that reads a pydantic model and answers with it.

`python -m benchmarks.echo PORT`
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Order(BaseModel):
    """As small as what a prediction is asked by."""

    restaurant_id: int
    zone_id: int | None = None


@app.post("/echo")
async def echo(order: Order) -> Order:
    """The order."""
    return order


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
