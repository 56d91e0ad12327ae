"""What arrived of a stream, so that it can go on at another router where it broke. Pure."""

from stagemesh.v1 import inference_pb2


class Received:
    """Gathers the responses to one request, over all of its attempts."""

    def __init__(self, request: inference_pb2.GenerateRequest) -> None:
        self._asked = request
        self._token = b""
        self._answers: dict[int, inference_pb2.AnswerSoFar] = {}
        self._resumes = False

    def __repr__(self) -> str:
        tokens = {index: len(answer.token_ids) for index, answer in self._answers.items()}
        return f"Received(tokens={tokens}, token={bool(self._token)})"

    @property
    def whole(self) -> bool:
        """Whether every answer is finished."""
        finished = sum(answer.finished for answer in self._answers.values())
        return finished >= max(1, self._asked.n)

    @property
    def may_go_on(self) -> bool:
        """Whether another attempt can take it up: nothing has arrived yet, or the router gave a token."""
        return not self._answers or bool(self._token)

    @property
    def begun(self) -> bool:
        """Whether anything arrived."""
        return bool(self._answers)

    def request(self) -> inference_pb2.GenerateRequest:
        """The request of the next attempt."""
        self._resumes = self.begun
        if not self.begun:
            return self._asked
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self._asked)
        request.resume.token = self._token
        request.resume.answers.extend(self._answers[index] for index in sorted(self._answers))
        return request

    def add(self, response: inference_pb2.GenerateResponse) -> bool:
        """Take in a response; False when it is of a router that knows no resuming and has begun anew."""
        if self._resumes and not response.resume_token:
            return False
        self._resumes = False
        self._token = self._token or response.resume_token
        answer = self._answers.get(response.index)
        if answer is None:
            answer = self._answers[response.index] = inference_pb2.AnswerSoFar(index=response.index)
        answer.token_ids.extend(token.id for token in response.tokens)
        answer.characters += len(response.text)
        answer.finished = answer.finished or bool(response.finish_reason)
        return True
