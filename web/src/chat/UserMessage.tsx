import { useState } from "preact/hooks";
import { CopyButton } from "../shared/CopyButton.tsx";
import { IconButton } from "../shared/IconButton.tsx";
import { memo } from "../shared/memo.tsx";
import { editUser } from "./answering.ts";
import * as chats from "./chats.ts";
import { focusPrompt } from "./Composer.tsx";
import { EditBox, focusAgain } from "./EditBox.tsx";
import { MessageBar, Versions } from "./MessageBar.tsx";
import type { Message } from "./model.ts";

interface Props {
  message: Message;
  versions: readonly string[];
}

export const UserMessage = memo(({ message, versions }: Props) => {
  const [editing, setEditing] = useState(false);
  return (
    <article aria-label="You">
      <h2 class="visually-hidden">You</h2>
      <Pictures message={message} />
      {editing ? (
        <EditBox
          text={message.text}
          label="Your message"
          action="Send"
          onCancel={() => {
            setEditing(false);
            focusAgain(message.id, "Edit message");
          }}
          onSave={(text) => {
            setEditing(false);
            void editUser(message, text);
            focusPrompt();
          }}
        />
      ) : (
        message.text && <div class="bubble">{message.text}</div>
      )}
      {!editing && (
        <MessageBar>
          <Versions message={message} versions={versions} />
          <CopyButton label="Copy message" text={() => message.text} />
          <IconButton icon="edit" size={17} label="Edit message" onClick={() => setEditing(true)} />
          <IconButton
            icon="trash"
            size={17}
            label="Delete from here"
            onClick={() => {
              void chats.removeMessage(message.id);
              focusPrompt();
            }}
          />
        </MessageBar>
      )}
    </article>
  );
});

function Pictures({ message }: { message: Message }) {
  const shown = (message.pictures ?? []).flatMap((id) => chats.pictures.value.get(id) ?? []);
  if (!shown.length) return null;
  return (
    <div class="pictures">
      {shown.map((one) => <img key={one.id} src={one.data} alt={one.name} width={one.width} height={one.height} />)}
    </div>
  );
}
