/** The engine, live: what every process, queue and request does. */
import { useEffect, useState } from "preact/hooks";
import { Actors } from "./Actors.tsx";
import { follow, model } from "./feed.ts";
import { Images } from "./Images.tsx";
import { KvMap } from "./KvMap.tsx";
import { Lanes } from "./Lanes.tsx";
import type { LiveModel } from "./model.ts";
import { Notes } from "./Notes.tsx";
import { Plots } from "./Plots.tsx";
import { Requests } from "./Requests.tsx";
import { StatusLine } from "./StatusLine.tsx";
import { Tiles } from "./Tiles.tsx";

export default function LiveView() {
  useEffect(follow, []);
  /** What is shown while the view is held still. */
  const [held, hold] = useState<LiveModel | undefined>(undefined);
  const shown = held ?? model.value;
  return (
    <main id="main" class="live" tabIndex={-1} aria-labelledby="live-title">
      <div class="live-page">
        <StatusLine model={shown} paused={held !== undefined} onPause={() => hold(held ? undefined : model.value)} />
        {shown.snapshot && (
          <>
            <Tiles model={shown} />
            <Actors model={shown} />
            <Plots points={shown.history} />
            <div class="live-pair">
              <KvMap model={shown} />
              <Notes notes={shown.notes} />
            </div>
            <Requests model={shown} />
            <div class="live-pair">
              <Lanes model={shown} />
              {shown.images && <Images images={shown.images} />}
            </div>
          </>
        )}
      </div>
    </main>
  );
}
